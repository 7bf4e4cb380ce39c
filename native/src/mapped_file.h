// Arrays over the pages of a file: nothing is read before it is used, and nothing is copied.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <tuple>
#include <vector>

#include "operation.h"

namespace musicgen {

using TensorPlace = std::tuple<int64_t, std::vector<int>, mx::Dtype>;  // offset in the file, shape, type

// MLX's CPU allocator keeps a buffer's size in front of its data: so does this, at the end of a page before the file.
inline mx::allocator::Data map_file(const std::string& path, size_t& size) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const auto fail = [&] {
    const int error = errno;
    if (file >= 0) close(file);
    throw std::system_error(error, std::generic_category(), path);
  };
  struct stat status;
  if (file < 0 || fstat(file, &status)) fail();
  size = static_cast<size_t>(status.st_size);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), length = page + size;
  void* region = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) fail();
  char* data = static_cast<char*>(region) + page;
  // Private, so that a program that changes the arrays doesn't change the file.
  if (size && mmap(data, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED) {
    const int error = errno;
    munmap(region, length);
    errno = error;
    fail();
  }
  close(file);
#ifdef MADV_POPULATE_READ
  // One call for all pages, instead of a fault for each few of them; older kernels refuse it.
  if (size) madvise(data, size, MADV_POPULATE_READ);
#endif
  size_t* buffer = reinterpret_cast<size_t*>(data) - 1;
  *buffer = size;
  return {mx::allocator::Buffer(buffer), [region, length](mx::allocator::Buffer) { munmap(region, length); }};
}

// The tensors of a file that lie at `places`. The file must stay as it is for as long as one of them is in use.
inline std::vector<mx::array> map_tensors(const std::string& path, const std::vector<TensorPlace>& places) {
  size_t size = 0;
  const mx::array whole(map_file(path, size), mx::Shape{1}, mx::uint8);
  std::vector<mx::array> tensors;
  for (const auto& [offset, sizes, dtype] : places) {
    const mx::Shape shape(sizes.begin(), sizes.end());
    mx::array tensor(shape, dtype, nullptr, {});
    require(offset >= 0 && static_cast<size_t>(offset) + tensor.nbytes() <= size, "a tensor ends behind its file");
    const auto itemsize = static_cast<int64_t>(tensor.itemsize());
    require(offset % itemsize == 0, "a tensor isn't aligned");
    const mx::array::Flags flags{.contiguous = true, .row_contiguous = true, .col_contiguous = tensor.ndim() < 2};
    tensor.copy_shared_buffer(whole, mx::make_contiguous_strides(shape), flags, tensor.size(), offset / itemsize);
    tensor.set_status(mx::array::Status::available);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

// An array whose values are whatever is in its memory, which takes no time and no pages before they are written.
inline mx::array empty(const std::vector<int>& shape, mx::Dtype dtype) {
  size_t size = mx::size_of(dtype);
  for (const int n : shape) size *= static_cast<size_t>(n);
  return mx::array(mx::allocator::malloc(size), mx::Shape(shape.begin(), shape.end()), dtype);
}

}  // namespace musicgen
