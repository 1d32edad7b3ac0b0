"""TensorFlow Lite for Microcontrollers: the exact tensor arena that a network needs on a microcontroller.

The interpreter's allocator is the one that runs on the device, so that the arena is exact, not estimated; how long the
device takes is not known here (https://pypi.org/project/tflite-micro/). ``latency_s`` is therefore absent, and the row
has one figure: ``peak_memory_bytes`` is the arena, used size by the interpreter's own account.
"""
