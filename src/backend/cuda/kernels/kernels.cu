// Every kernel of the CUDA backend, compiled together to one fatbin.
#include "rows.cuh"
#include "attention_hopper.cuh"
#include "head.cuh"
#include "many_rows.cuh"
#include "trial.cuh"
