// The convolution alone, for builds with other instructions than this machine's and under sanitizers.
#include "../../../../models/lidar/native/convolve_calls.h"
