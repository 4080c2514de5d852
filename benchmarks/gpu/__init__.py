"""What prefold does on a GPU, in a quarter of an hour: ``python -m benchmarks.gpu [--out FOLDER] [--minutes 8]``.

Parts run in the order of their worth, each in a process of its own and within its share of the time. What a part found
is written line by line, so that it counts if the time ends or the part breaks.
"""
