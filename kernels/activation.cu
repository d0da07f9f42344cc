// y = act(x), dx = dy act'(x): n values each, any shape. `kind` numbers the non-linearity as activation.cuh does.
#include "activation.cuh"
#include "elementwise.cuh"

// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void activation_forward(const real* __restrict__ x, real* __restrict__ y,
                                                                     uint32_t kind, uint32_t n) {
    with_kind(kind, [=](auto k) { map(y, n, [](float x) { return act_value<decltype(k)::kind>(x); }, x); });
}

// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void activation_backward(const real* __restrict__ x,
                                                                      const real* __restrict__ dy,
                                                                      real* __restrict__ dx, uint32_t kind,
                                                                      uint32_t n) {
    with_kind(kind, [=](auto k) {
        map(dx, n, [](float x, float dy) { return dy * act_slope<decltype(k)::kind>(x); }, x, dy);
    });
}
