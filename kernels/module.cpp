// Makes the shared library importable as vitadapter._C. The operators register
// themselves with PyTorch's dispatcher when the library is loaded, so the
// Python module itself is empty.

#include <Python.h>

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
