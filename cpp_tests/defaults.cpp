#include "defaults.c"
