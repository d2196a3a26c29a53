// Inputs that the host can make again; inputs.py is the other half.
#pragma once
#include "model.h"

// Sizes the tensor and fills it with numbers of the seed. False for a type it does not know.
bool tensor_make(struct tensor *tensor, uint32_t seed);
size_t element_bytes(ONNXTensorElementDataType type);
