// Detects objects in an image with a package of AOTInductor, without Python:
//
//   detect PACKAGE.pt2 IMAGE.ppm LIBRARY...
//
// LIBRARY are the shared libraries of the operators: vitadapter/_C.abi3.so, and
// that of torchvision for the suppression of boxes. The image is in binary PPM
// (`convert photo.jpg photo.ppm` of ImageMagick writes it). It prints a line
// for each object: class, score, and x0, y0, x1, y1 in pixels, by tabs.

#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Metadata = std::unordered_map<std::string, std::string>;

// Libraries register their operators with PyTorch when they are loaded. Lazily,
// since ours is also a module of Python, whose functions are not there; they
// are not called either.
void load_operators(const std::string& library) {
  if (dlopen(library.c_str(), RTLD_LAZY) == nullptr) {
    throw std::runtime_error(dlerror());
  }
}

// A number of a PPM's header, in which comments may stand.
int64_t read_number(std::istream& file) {
  while ((file >> std::ws).peek() == '#') {
    file.ignore(1 << 16, '\n');
  }
  int64_t number = 0;
  file >> number;
  return number;
}

// Returns pixels (1, 3, H, W), uint8, in RGB order.
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind(2, ' ');
  file.read(kind.data(), 2);
  const int64_t width = read_number(file), height = read_number(file);
  const int64_t largest = read_number(file);
  file.get(); // one blank
  if (!file || kind != "P6" || largest != 255 || width < 1 || height < 1) {
    throw std::runtime_error(path + " must be a binary PPM (P6) of 8 bits");
  }
  std::vector<uint8_t> pixels(width * height * 3);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) {
    throw std::runtime_error(path + " ends before its last pixel");
  }
  return at::from_blob(pixels.data(), {1, height, width, 3}, at::kByte)
      .permute({0, 3, 1, 2})
      .contiguous();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

// Resizes like Detectron2's ResizeShortestEdge, whose side and limit are given.
at::Tensor resize(const at::Tensor& images, double side, double limit) {
  double height = images.size(2), width = images.size(3);
  double scale = side / std::min(height, width);
  scale = std::min(scale, limit / std::max(height, width));
  height = static_cast<int64_t>(height * scale + 0.5);
  width = static_cast<int64_t>(width * scale + 0.5);
  return at::_upsample_bilinear2d_aa(
      images, {int64_t(height), int64_t(width)}, /*align_corners=*/false);
}

at::Tensor prepare(at::Tensor images, const Metadata& metadata) {
  for (const std::string& step : lines_of(metadata.at("resize"))) {
    std::istringstream words(step);
    std::string name;
    double side = 0, limit = 0;
    if (!(words >> name >> side >> limit) || name != "ResizeShortestEdge") {
      throw std::runtime_error("this program cannot resize by " + step);
    }
    images = resize(images, side, limit);
  }
  return metadata.at("image_format") == "BGR" ? images.flip(1) : images;
}

// Runs the package on images of any size.
std::unordered_map<std::string, at::Tensor> run(
    torch::inductor::AOTIModelPackageLoader& package,
    const Metadata& metadata,
    const at::Tensor& images) {
  const int64_t multiple = std::stoll(metadata.at("multiple"));
  const int64_t height = images.size(2), width = images.size(3);
  // The package itself does not check sizes.
  if (metadata.at("size").empty() && std::min(height, width) <= multiple) {
    throw std::runtime_error(
        "the sides of the image must be longer than " +
        metadata.at("multiple") + " pixels");
  }
  const int64_t bottom = (multiple - height % multiple) % multiple;
  const int64_t right = (multiple - width % multiple) % multiple;
  const at::Tensor padded =
      at::constant_pad_nd(images, {0, right, 0, bottom}).contiguous();
  const std::string size = std::to_string(height + bottom) + " " +
      std::to_string(width + right);
  if (!metadata.at("size").empty() && metadata.at("size") != size) {
    throw std::runtime_error(
        "the package takes padded images of " + metadata.at("size") +
        " pixels (height, width), got " + size);
  }
  const std::vector<at::Tensor> outputs =
      package.run({padded, at::tensor({height, width}, at::kLong)});
  const std::vector<std::string> names = lines_of(metadata.at("outputs"));
  std::unordered_map<std::string, at::Tensor> found;
  for (size_t i = 0; i < outputs.size(); ++i) {
    found[names.at(i)] = outputs[i];
  }
  return found;
}

void detect(
    const std::string& file,
    const std::string& image,
    const std::vector<std::string>& libraries) {
  const c10::InferenceMode no_gradients;
  for (const std::string& library : libraries) {
    load_operators(library);
  }
  torch::inductor::AOTIModelPackageLoader package(file);
  const Metadata metadata = package.get_metadata();
  const std::vector<std::string> classes =
      lines_of(metadata.at("thing_classes"));
  if (metadata.count("full_size") != 0) {
    throw std::runtime_error(file + " was exported with --full-size");
  }
  const at::Tensor original = read_ppm(image);
  const at::Tensor images = prepare(original, metadata);
  auto found = run(package, metadata, images);
  if (found.count("boxes") == 0) {
    throw std::runtime_error(file + " holds no detector");
  }
  const double height = original.size(2), width = original.size(3);
  const double limits[] = {width, height};
  const double scales[] = {width / images.size(3), height / images.size(2)};
  const at::Tensor boxes = found["boxes"].to(at::kDouble).contiguous();
  const at::Tensor scores = found["scores"].to(at::kDouble).contiguous();
  const at::Tensor numbers = found["classes"].contiguous();
  for (int64_t i = 0; i < boxes.size(0); ++i) {
    const size_t number = numbers.const_data_ptr<int64_t>()[i];
    double box[4];
    for (int side = 0; side < 4; ++side) { // inside the image
      const double place = boxes.const_data_ptr<double>()[4 * i + side];
      box[side] =
          std::clamp(place * scales[side % 2], 0.0, limits[side % 2]);
    }
    if (box[2] <= box[0] || box[3] <= box[1]) {
      continue;
    }
    std::printf(
        "%s\t%.4f\t%.2f\t%.2f\t%.2f\t%.2f\n",
        number < classes.size() ? classes[number].c_str()
                                : std::to_string(number).c_str(),
        scores.const_data_ptr<double>()[i],
        box[0],
        box[1],
        box[2],
        box[3]);
  }
}

} // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s PACKAGE.pt2 IMAGE.ppm LIBRARY...\n", argv[0]);
    return 2;
  }
  try {
    detect(argv[1], argv[2], {argv + 3, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
