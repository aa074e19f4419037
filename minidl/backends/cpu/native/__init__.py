"""Native programs: a trace's tasks as LLVM code for its exact shapes, compiled by llvmlite, run by one call.

target     what the processor has: vector length, registers, FMA
emitter    text of LLVM functions: loops, vectors, variables
compiler   from text to machine code in memory, and the cache of compiled objects on disk
driver     a segment's code: tasks, phases, chunks and their hand-over between threads
program    a segment bound to memory
governor   all threads, or one while other programs are in the way
bodies     MAP ops with a body as loops for plain calls
"""
