"""Random arrays, and the gradient of a plain function by differences."""

import numpy as np


def normal(*shape, seed=0):
    return np.random.RandomState(seed).normal(size=shape)


def differences(f, arrays, which):
    """Central differences of a scalar function of float64 arrays, element by element of
    arrays[which].
    """
    gradient, step = np.zeros(arrays[which].shape), 1e-5
    for index in np.ndindex(*gradient.shape):
        ends = []
        for sign in (1, -1):
            moved = [a.copy() for a in arrays]
            moved[which][index] += sign * step
            ends.append(f(*moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient
