//! Frozen weights: read from a safetensors file, checked, folded and laid out once.
//!
//! BatchNorm after a convolution without bias is a convolution with bias, computed here in f64 and rounded once:
//! ```text
//! γ (w ∗ x − μ) / √(σ² + ε) + β  =  (s w) ∗ x + (β − s μ),   s = γ / √(σ² + ε),   ε = 1e-3
//! ```
//! Files hold `[O, I, KH, KW]`; ours is `[KH, KW, I, O]`. A pointwise kernel is then `[I, O]` and a depthwise one, whose
//! I is 1, is `[KH, KW, O]`: the same order of values under a shorter shape.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// ε of every BatchNorm, in both networks.
const EPSILON: f64 = 1e-3;

/// A convolution ready to run.
pub(super) struct Layer {
    /// `[KH, KW, I, O]`, `[I, O]` or `[KH, KW, C]`.
    pub weight: Tensor,
    /// `[O]`.
    pub bias: Tensor,
}

impl Layer {
    /// Reorders a kernel, each value on its way through `scaled(output channel, value)`.
    fn new([o, i, kh, kw]: [usize; 4], weight: &[f32], bias: &[f32], scaled: impl Fn(usize, f32) -> f32) -> Self {
        let mut ours = vec![0.0; weight.len()];
        for (at, &w) in weight.iter().enumerate() {
            let (out, input, tap) = (at / (i * kh * kw), at / (kh * kw) % i, at % (kh * kw));
            ours[(tap * i + input) * o + out] = scaled(out, w);
        }
        let shape: Shape = match (i, kh * kw) {
            (_, 1) => [i, o].into(),
            (1, _) => [kh, kw, o].into(),
            _ => [kh, kw, i, o].into(),
        };
        Layer { weight: Tensor::from_slice(shape, &ours), bias: Tensor::from_slice([o], bias) }
    }

    /// A copy on another device, f32 in every precision.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let copy = |t: &Tensor| {
            let host = t.to_host()?;
            device.gpu().map_or(Ok(host.clone()), |gpu| host.to_gpu(gpu, true))
        };
        Ok(Layer { weight: copy(&self.weight)?, bias: copy(&self.bias)? })
    }
}

/// A weight file that is open for reading.
pub(super) struct Weights<'a> {
    path: &'a Path,
    /// What to do about a file that does not fit.
    help: String,
    file: SafeTensors<'a>,
}

impl<'a> Weights<'a> {
    /// Opens the bytes of a file; `path` and `help` are for messages.
    pub fn parse(path: &'a Path, help: &str, bytes: &'a [u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| {
            use SafeTensorError as E;
            // A .pth is a zip archive, an old one a pickle.
            let what = if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&[0x80, 0x02]) {
                "is a PyTorch file, not safetensors".to_owned()
            } else if matches!(e, E::HeaderTooSmall | E::InvalidHeaderLength | E::MetadataIncompleteBuffer) {
                format!("is incomplete: its header does not fit its {} bytes", bytes.len())
            } else {
                format!("is not a safetensors file: {e}")
            };
            Error::model(path, what, help)
        })?;
        Ok(Weights { path, help: help.into(), file })
    }

    fn refuse(&self, what: String) -> Error {
        Error::model(self.path, what, &*self.help)
    }

    /// All values of a tensor, as f32.
    fn values(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Ok(tensor) = self.file.tensor(key) else {
            return Err(self.refuse(format!("lacks the tensor {key:?}")));
        };
        if tensor.shape() != shape {
            return Err(self.refuse(format!("{key:?} has shape {:?}, expected {shape:?}", tensor.shape())));
        }
        // The tensors of a file start at any byte, so values are read one by one.
        let (pairs, quads) = (tensor.data().as_chunks::<2>().0, tensor.data().as_chunks::<4>().0);
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => quads.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(self.refuse(format!("{key:?} holds {other:?}, expected F32, F16 or BF16"))),
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(self.refuse(format!("{key:?} holds {} at position {at}", values[at]))),
            None => Ok(values),
        }
    }

    /// The convolution `conv`, `[O, I, KH, KW]` in the file, with the BatchNorm `norm` behind it.
    pub fn normalised(&self, conv: &str, norm: &str, oihw: [usize; 4]) -> Result<Layer> {
        let weight = self.values(&format!("{conv}.weight"), &oihw)?;
        let width = [oihw[0]];
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| self.values(&format!("{norm}.{part}"), &width));
        let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
        if let Some(at) = variance.iter().position(|&v| v < 0.0) {
            return Err(self.refuse(format!("\"{norm}.running_var\" holds {} at position {at}", variance[at])));
        }
        let scale: Vec<f64> =
            gamma.iter().zip(&variance).map(|(&g, &v)| f64::from(g) / (f64::from(v) + EPSILON).sqrt()).collect();
        let bias: Vec<f32> = (beta.iter().zip(&mean).zip(&scale))
            .map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32)
            .collect();
        let layer = Layer::new(oihw, &weight, &bias, |o, w| (f64::from(w) * scale[o]) as f32);
        if layer.weight.data().iter().chain(layer.bias.data()).all(|v| v.is_finite()) {
            return Ok(layer);
        }
        Err(self.refuse(format!("{norm:?} folded into {conv:?} leaves the range of f32")))
    }

    /// The convolution `conv`, `[O, I, KH, KW]` in the file, with its own bias.
    pub fn biased(&self, conv: &str, oihw: [usize; 4]) -> Result<Layer> {
        let weight = self.values(&format!("{conv}.weight"), &oihw)?;
        let bias = self.values(&format!("{conv}.bias"), &oihw[..1])?;
        Ok(Layer::new(oihw, &weight, &bias, |_, w| w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::{ConvGeometry, conv2d_forward};
    use crate::rng::Rng;
    use safetensors::tensor::TensorView;

    fn random(len: usize, stream: u64, low: f32, high: f32) -> Vec<f32> {
        let mut rng = Rng::new(11, stream);
        (0..len).map(|_| rng.uniform_in(low, high)).collect()
    }

    fn bytes_of(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(k, d, s, b)| (*k, TensorView::new(*d, s.clone(), b).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    /// A 3x2 convolution of 3 channels to 4 and its norm.
    fn parts() -> [Vec<f32>; 5] {
        let spread = [(-1.0, 1.0), (0.5, 1.5), (-1.0, 1.0), (-1.0, 1.0), (0.0, 2.0)];
        let mut stream = 0;
        spread.map(|(low, high)| {
            stream += 1;
            random(if stream == 1 { 4 * 3 * 3 * 2 } else { 4 }, stream, low, high)
        })
    }

    const PARTS: [&str; 5] = ["c.weight", "n.weight", "n.bias", "n.running_mean", "n.running_var"];

    fn convolution(parts: &[Vec<f32>; 5]) -> Vec<u8> {
        let shape = |i: usize| if i == 0 { vec![4, 3, 3, 2] } else { vec![4] };
        file(&std::array::from_fn::<_, 5, _>(|i| (PARTS[i], Dtype::F32, shape(i), bytes_of(&parts[i]))))
    }

    fn folded(bytes: &[u8]) -> Result<Layer> {
        Weights::parse(Path::new("w.safetensors"), "take another", bytes)?.normalised("c", "n", [4, 3, 3, 2])
    }

    #[test]
    fn a_folded_convolution_is_convolution_then_norm() {
        let parts = parts();
        let layer = folded(&convolution(&parts)).unwrap();
        let g = ConvGeometry { n: 1, h: 5, w: 4, ci: 3, co: 4, kh: 3, kw: 2, stride: 1, pad: [0; 4] };
        let x = random(5 * 4 * 3, 9, -1.0, 1.0);
        let mut got = vec![f32::NAN; 3 * 3 * 4];
        conv2d_forward(&g, &x, layer.weight.data(), &mut got, |_, rows| {
            rows.iter_mut().enumerate().for_each(|(i, v)| *v += layer.bias.data()[i % 4]);
        });
        let [w, gamma, beta, mean, var] = &parts;
        for (at, &got) in got.iter().enumerate() {
            let (y, col, o) = (at / 12, at / 4 % 3, at % 4);
            let mut z = 0.0;
            for (i, ky, kx) in (0..18).map(|t| (t / 6, t / 2 % 3, t % 2)) {
                z += f64::from(w[((o * 3 + i) * 3 + ky) * 2 + kx]) * f64::from(x[((y + ky) * 4 + col + kx) * 3 + i]);
            }
            let of = |v: &[f32]| f64::from(v[o]);
            let want = of(gamma) * (z - of(mean)) / (of(var) + 1e-3).sqrt() + of(beta);
            assert!((f64::from(got) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{at}: {got} against {want}");
        }
    }

    #[test]
    fn half_precisions_are_widened_exactly() {
        let values = [0.5f32, -3.0, 65504.0, 1.0 / 1024.0, 0.0, -0.125];
        let half = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let brain = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        // An odd number of bytes first, so that what follows starts nowhere round.
        let bytes = file(&[
            ("a", Dtype::F16, vec![2, 3], half),
            ("b", Dtype::BF16, vec![6], brain),
            ("c", Dtype::U8, vec![3], vec![1, 2, 3]),
            ("d", Dtype::F32, vec![6], bytes_of(&values)),
        ]);
        let w = Weights::parse(Path::new("w"), "", &bytes).unwrap();
        assert_eq!(w.values("a", &[2, 3]).unwrap(), values);
        assert_eq!(w.values("d", &[6]).unwrap(), values);
        let brain: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(w.values("b", &[6]).unwrap(), brain);
        assert!(w.values("c", &[3]).unwrap_err().to_string().contains("U8"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let good = convolution(&parts());
        let refused = |bytes: &[u8], word: &str| {
            let error = folded(bytes).err().expect("refused");
            assert!(matches!(error, Error::Model { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("w.safetensors") && text.contains("take another"), "{text}");
        };
        assert!(folded(&good).is_ok());
        refused(b"", "incomplete");
        refused(&good[..good.len() - 1], "incomplete");
        refused(&good[..40], "incomplete");
        refused(b"PK\x03\x04 and so on, for more than eight bytes", "PyTorch");
        refused(b"a text file of more than eight bytes", "not a safetensors file");
        for (at, value, word) in [
            (0, f32::NAN, "\"c.weight\" holds NaN at position 2"),
            (3, f32::INFINITY, "\"n.running_mean\" holds inf at position 2"),
            (4, -0.5, "\"n.running_var\" holds -0.5 at position 2"),
            (2, f32::NEG_INFINITY, "\"n.bias\" holds -inf at position 2"),
        ] {
            let mut parts = parts();
            parts[at][2] = value;
            refused(&convolution(&parts), word);
        }
        let mut huge = parts();
        (huge[0][0], huge[1][0]) = (f32::MAX, f32::MAX);
        refused(&convolution(&huge), "leaves the range");
        let two = |width| {
            let [kernel, ..] = parts();
            file(&[
                ("c.weight", Dtype::F32, vec![4, 3, 3, 2], bytes_of(&kernel)),
                ("n.weight", Dtype::F32, vec![width], bytes_of(&vec![1.0; width])),
            ])
        };
        refused(&two(4), "lacks the tensor \"n.bias\"");
        refused(&two(5), "\"n.weight\" has shape [5], expected [4]");
    }
}
