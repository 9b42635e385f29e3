// Bilinear sampling of one point, free of any device.

#pragma once

#include <c10/macros/Macros.h>

#include <cmath>
#include <cstdint>

namespace vitadapter {

// A pixel next to the sampling point: its share in the sample, and how that
// share changes as the point moves right (x) or down (y) by one pixel.
template <typename T>
struct Corner {
  int64_t pixel; // y * width + x
  T weight;
  T weight_dx;
  T weight_dy;
};

// Calls visit(corner) for each of the up to four corners inside the map. The
// location is normalised: (0, 0) and (1, 1) are the outer corners of the map,
// pixel centres lie at half-integers over (width, height).
template <typename T, typename Visit>
C10_HOST_DEVICE inline void for_each_corner(
    T location_x,
    T location_y,
    int64_t height,
    int64_t width,
    Visit&& visit) {
  const T x = location_x * static_cast<T>(width) - static_cast<T>(0.5);
  const T y = location_y * static_cast<T>(height) - static_cast<T>(0.5);
  // Written so that NaN fails, and tested before any conversion to integer,
  // which is undefined for infinite and huge values.
  const bool touches_map = x >= T(-1) && y >= T(-1) &&
      x < static_cast<T>(width) && y < static_cast<T>(height);
  if (!touches_map) {
    return;
  }
  const T floor_x = std::floor(x);
  const T floor_y = std::floor(y);
  const T right = x - floor_x;
  const T lower = y - floor_y;
  const auto column = static_cast<int64_t>(floor_x);
  const auto row = static_cast<int64_t>(floor_y);
  for (int corner = 0; corner < 4; ++corner) {
    const bool is_right = corner % 2 == 1;
    const bool is_lower = corner / 2 == 1;
    const int64_t corner_x = column + is_right;
    const int64_t corner_y = row + is_lower;
    if (corner_x < 0 || corner_x >= width || corner_y < 0 ||
        corner_y >= height) {
      continue;
    }
    const T share_x = is_right ? right : T(1) - right;
    const T share_y = is_lower ? lower : T(1) - lower;
    visit(Corner<T>{
        corner_y * width + corner_x,
        share_x * share_y,
        is_right ? share_y : -share_y,
        is_lower ? share_x : -share_x});
  }
}

} // namespace vitadapter
