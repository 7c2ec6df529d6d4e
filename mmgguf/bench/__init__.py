"""The measurements behind ``mmgguf bench`` and the suite in ``benchmarks/``.

* `measure`: interleaved timing, the page cache
* `models`: generated files with the proportions of real ones, and that of `mmgguf demo`
* `fields`: a parser that reads field by field, which is what most readers do
* `peers`: other libraries that open such files, where they are installed
* `quick`: the few comparisons that ``mmgguf bench`` prints
* `verdict`: what to do with a file on this machine, which it prints at the end

Nothing here is imported by the rest of the library.
"""
