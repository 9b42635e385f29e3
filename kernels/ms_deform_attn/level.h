// One feature map inside the token axis of value.

#pragma once

#include <stdint.h>

namespace vitadapter {

struct Level {
  int64_t height;
  int64_t width;
  int64_t first_token;
};

} // namespace vitadapter
