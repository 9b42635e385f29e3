// Makes the shared library importable as vitadapter._C. The operators register
// themselves with PyTorch's dispatcher when the library is loaded, so the
// Python module itself only says how it was built.

#include <Python.h>
#include <torch/version.h>

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr ||
      PyModule_AddStringConstant(module, "torch_version", TORCH_VERSION) < 0 ||
      PyModule_AddStringConstant(
          module, "cuda_architectures", VITADAPTER_CUDA_ARCHITECTURES) < 0) {
    Py_XDECREF(module);
    return nullptr;
  }
  return module;
}
