"""What torch and the libraries below it raise on a GPU, word for word, for tests that have none.

Kinds and texts, not errors: an error that was raised keeps all that was on the stack.
"""

import torch

OUT_OF_MEMORY = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
    (torch.AcceleratorError, "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in ..."),
    (RuntimeError, "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    (RuntimeError, "cuFFT error: CUFFT_ALLOC_FAILED"),
    (RuntimeError, "CUDA driver error: out of memory"),
]

OTHER_FAULTS = [
    (torch.AcceleratorError, "CUDA error: an illegal memory access was encountered"),
    (torch.AcceleratorError, "CUDA error: device-side assert triggered\nnot out of memory"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a ..."),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    (RuntimeError, "shape '[2, 3]' is invalid for input of size 5"),
    (ValueError, "out of memory"),
]
