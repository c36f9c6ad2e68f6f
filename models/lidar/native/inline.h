// For small functions that take vectors or loop bodies: left to itself the compiler keeps some of them as calls.
#pragma once

#define TANDEM_INLINE inline __attribute__((always_inline))
