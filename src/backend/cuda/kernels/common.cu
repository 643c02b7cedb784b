// Program 1: what runs for every configuration, without specialisation.

#include "append.cuh"
#include "attend.cuh"
#include "edit.cuh"
#include "fork.cuh"
#include "move_rows.cuh"
#include "stage_batch.cuh"
