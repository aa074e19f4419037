"""Templates of native code: functions that write LLVM instructions through an emitter `f`, for shapes known in advance.

words         scalar texts ("exp({0})", "({0} + {1})") as vector instructions
mathematics   exp, log, tanh, ... on vectors
contract      sums of products over any affine subscripts: convolutions in three directions, matrix products
tail          what follows a contraction while its values are in registers
nest          loops: element by element, with reductions

A template gets addresses, sizes and strides; it allocates nothing and knows nothing of arrays or of minidl.
"""
