"""Seconds that a program should take on a measured machine: a roofline whose roof depends on the shape.

    matmuls      FLOPs over the machine's rate for their shape; where a matrix was given to the program, such as a weight,
                 the time that so few rows take to get through weights that lie in no near cache, if that is longer
    moving       bytes over the bandwidth for as many bytes
    turning      arrays whose axes change places, as keys and values before they are multiplied: bytes over their own rate
    slicing      pieces copied out of arrays, as the weights of a token's experts: bytes over their own rate
    numbers      exponentials, sums, gathered and sorted numbers, and picking the largest, each over its own rate
    operations   what an operation of so large a program costs, times their number

The parts are added: one processor does one after the other. No constant is fitted to a model; all are measured once, on
operations that belong to no model.
"""

from __future__ import annotations

from minimoe.cost.machine import Machine
from minimoe.cost.program import Work

PARTS = ("matmuls", "moving", "turning", "slicing", "numbers", "operations")


def predicted_seconds(work: Work, machine: Machine, weights: int | float) -> dict[str, int | float]:
    """Seconds by part, see `PARTS`; their sum is the prediction.

    Args:
      work: of one step or one token, from `minimoe.cost.work_of`.
      weights: bytes of all weights that steps read in turn: they decide from which memory a matmul reads its own.

    Example:
      >>> rates = dict.fromkeys(minimoe.cost.machine.KINDS, 1e9)
      >>> grid = {shape: 1e-6 for shape in minimoe.cost.machine.grid_shapes()}
      >>> reads = {(rows, 2**20): 1e10 for rows in (1, 8, 64)}
      >>> bytes_a_second = {2**20: 1e10}
      >>> copies = bytes_a_second, bytes_a_second
      >>> mine = Machine("mine", 1, 2**33, grid, {}, bytes_a_second, reads, rates, {20: 1e-7, 320: 1e-6}, *copies)
      >>> matmuls = {(8, 128, 256): 3.0}
      >>> work = Work(matmuls, {1000: 2.0}, {20: 5.0}, {"summed": 5000.0}, matmuls, {1000: 4.0}, {1000: 6.0})
      >>> {part: round(1e6 * seconds, 1) for part, seconds in predicted_seconds(work, mine, 1e6).items()}
      {'matmuls': 39.3, 'moving': 0.2, 'turning': 0.8, 'slicing': 1.2, 'numbers': 5.0, 'operations': 0.5}
    """
    matmuls = 0.0
    for (m, k, n), count in work.matmuls.items():
        near, given = machine.matmul(m, k, n), work.given.get((m, k, n), 0)
        matmuls += (count - given) * near
        matmuls += given * max(near, 4 * k * n / machine.reads_per_second(m, weights))
    moving = sum(count * size / machine.bytes_per_second(size) for size, count in work.moved.items())
    turning = sum(count * 2 * size / machine.turns_per_second(size) for size, count in work.turned.items())
    slicing = sum(count * 2 * size for size, count in work.sliced.items()) / machine.slices_per_second(weights)
    numbers = sum(count / machine.per_second[kind] for kind, count in work.numbers.items())
    operations = sum(count * machine.call(size) for size, count in work.calls.items())
    return dict(zip(PARTS, (matmuls, moving, turning, slicing, numbers, operations), strict=True))
