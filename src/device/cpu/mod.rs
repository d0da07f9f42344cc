//! The CPU: vector kernels chosen at run time, spread over rayon's threads in a fixed order.
