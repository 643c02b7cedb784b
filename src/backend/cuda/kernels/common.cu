// Program 1: what runs for every configuration, without specialisation.

#include "append.cuh"
#include "attend_generic.cuh"
#include "edit.cuh"
#include "fork.cuh"
#include "stage.cuh"
