//! Frozen weights: read from a file, checked, folded and laid out once.
//!
//! BatchNorm after a convolution without bias is a convolution with bias, computed here in f64 and rounded once:
//! ```text
//! γ (w ∗ x − μ) / √(σ² + ε) + β  =  (s w) ∗ x + (β − s μ),   s = γ / √(σ² + ε),   ε = 1e-3
//! ```
//! Files hold `[O, I, KH, KW]`; ours is `[KH, KW, I, O]`. A pointwise kernel is then `[I, O]` and a depthwise one, whose
//! I is 1, is `[KH, KW, O]`: the same order of values under a shorter shape.

use std::cell::RefCell;
use std::path::Path;

use safetensors::Dtype;

use super::names::{Names, Naming, Place};
use super::source::Source;
use crate::error::{Error, Result};
use crate::nn::frozen::Frozen;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// ε of every BatchNorm, in both networks.
const EPSILON: f64 = 1e-3;

/// Reorders a kernel, each value on its way through `scaled(output channel, value)`.
fn layer([o, i, kh, kw]: [usize; 4], weight: &[f32], bias: &[f32], scaled: impl Fn(usize, f32) -> f32) -> Frozen {
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
    Frozen::new(Tensor::from_slice(shape, &ours), Tensor::from_slice([o], bias))
}

/// A tensor that a network asked for.
pub(super) struct Asked {
    /// Its name among ours.
    pub name: String,
    /// Its name in the file.
    pub key: String,
    pub shape: Vec<usize>,
    /// Only in a survey.
    pub values: Vec<f32>,
}

/// A weight file that is open for reading.
pub(super) struct Weights<'a> {
    path: &'a Path,
    /// What to do about a file that does not fit.
    help: &'a str,
    source: &'a Source<'a>,
    names: &'a Names,
    /// A survey goes on where loading stops: it notes what is wrong, and keeps all it reads.
    survey: bool,
    faults: RefCell<Vec<String>>,
    asked: RefCell<Vec<Asked>>,
    digest: RefCell<blake3::Hasher>,
}

/// The tensors of one block, or of the stem.
#[derive(Clone, Copy)]
pub(super) struct Scope<'w, 'a> {
    weights: &'w Weights<'a>,
    place: Option<Place>,
}

impl<'a> Weights<'a> {
    /// The tensors of `source` under its names; `path` and `help` are for messages.
    pub fn new(path: &'a Path, help: &'a str, source: &'a Source<'a>, names: &'a Names, survey: bool) -> Self {
        let (faults, asked) = (RefCell::default(), RefCell::default());
        Weights { path, help, source, names, survey, faults, asked, digest: RefCell::default() }
    }

    /// The stem.
    pub fn stem(&self) -> Scope<'_, 'a> {
        Scope { weights: self, place: None }
    }

    /// A block.
    pub fn block(&self, place: Place) -> Scope<'_, 'a> {
        Scope { weights: self, place: Some(place) }
    }

    /// Identity of the values that were read: BLAKE3 of our names and the values as f32, whatever file they lie in.
    pub fn digest(&self) -> blake3::Hash {
        self.digest.borrow().finalize()
    }

    /// What a survey found wrong, and everything that was asked for.
    pub fn surveyed(self) -> (Vec<String>, Vec<Asked>) {
        (self.faults.into_inner(), self.asked.into_inner())
    }

    fn wrong(&self, what: String) -> Result<()> {
        if !self.survey {
            return Err(Error::model(self.path, what, self.help));
        }
        self.faults.borrow_mut().push(what);
        Ok(())
    }

    /// All values of the tensor `key` of the file, or what is wrong with it.
    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let found = self.source.find(key).ok_or_else(|| format!("lacks the tensor {key:?}"))?;
        if found.shape != shape {
            return Err(format!("{key:?} has shape {:?}, expected {shape:?}", found.shape));
        }
        if !matches!(found.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(format!("{key:?} holds {:?}, expected F32, F16 or BF16", found.dtype));
        }
        let values = self.source.values(key)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(format!("{key:?} holds {} at position {at}", values[at])),
            None => Ok(values),
        }
    }
}

impl Scope<'_, '_> {
    fn name(&self, names: &Names, part: &str) -> String {
        self.place.map_or_else(|| names.of_stem(part), |place| names.of_block(place, part))
    }

    /// All values of a part, as f32; in a survey zeros, where they cannot be had.
    fn values(&self, part: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Weights { names, survey, digest, asked, .. } = self.weights;
        let ours = Names { naming: Naming::Lukemelas, prefix: String::new() };
        let (name, key) = (self.name(&ours, part), self.name(names, part));
        let values = match self.weights.read(&key, shape) {
            Ok(values) => values,
            Err(fault) => {
                self.weights.wrong(fault)?;
                vec![0.0; shape.iter().product()]
            }
        };
        let mut digest = digest.borrow_mut();
        digest.update(name.as_bytes()).update(b"\0");
        values.iter().for_each(|v| {
            digest.update(&v.to_le_bytes());
        });
        if *survey {
            asked.borrow_mut().push(Asked { name, key, shape: shape.into(), values: values.clone() });
        }
        Ok(values)
    }

    /// The convolution `conv`, `[O, I, KH, KW]` in the file, with the BatchNorm `norm` behind it.
    pub fn normalised(&self, conv: &str, norm: &str, oihw: [usize; 4]) -> Result<Frozen> {
        let weight = self.values(&format!("{conv}.weight"), &oihw)?;
        let width = [oihw[0]];
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| self.values(&format!("{norm}.{part}"), &width));
        let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
        let key = |part: &str| self.name(self.weights.names, part);
        if let Some(at) = variance.iter().position(|&v| v < 0.0) {
            let key = key(&format!("{norm}.running_var"));
            self.weights.wrong(format!("{key:?} holds {} at position {at}", variance[at]))?;
        }
        let scale: Vec<f64> =
            gamma.iter().zip(&variance).map(|(&g, &v)| f64::from(g) / (f64::from(v) + EPSILON).sqrt()).collect();
        let bias: Vec<f32> = (beta.iter().zip(&mean).zip(&scale))
            .map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32)
            .collect();
        let folded = layer(oihw, &weight, &bias, |o, w| (f64::from(w) * scale[o]) as f32);
        if !folded.weight.data().iter().chain(folded.bias.data()).all(|v| v.is_finite()) {
            let [norm, conv] = [key(&format!("{norm}.weight")), key(&format!("{conv}.weight"))];
            self.weights.wrong(format!("{norm:?} folded into {conv:?} leaves the range of f32"))?;
        }
        Ok(folded)
    }

    /// The convolution `conv`, `[O, I, KH, KW]` in the file, with its own bias.
    pub fn biased(&self, conv: &str, oihw: [usize; 4]) -> Result<Frozen> {
        let weight = self.values(&format!("{conv}.weight"), &oihw)?;
        let bias = self.values(&format!("{conv}.bias"), &oihw[..1])?;
        Ok(layer(oihw, &weight, &bias, |_, w| w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::{ConvGeometry, conv2d_forward};
    use crate::rng::Rng;
    use half::{bf16, f16};
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

    fn opened<T>(bytes: &[u8], work: impl FnOnce(Weights) -> Result<T>) -> Result<T> {
        let (path, help) = (Path::new("w.safetensors"), "take another");
        let names = Names { naming: Naming::Lukemelas, prefix: String::new() };
        work(Weights::new(path, help, &Source::parse(path, help, bytes)?, &names, false))
    }

    fn folded(bytes: &[u8]) -> Result<Frozen> {
        opened(bytes, |weights| weights.stem().normalised("c", "n", [4, 3, 3, 2]))
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
        let numbers = [0.5f32, -3.0, 65504.0, 1.0 / 1024.0, 0.0, -0.125];
        let half = numbers.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let brain = numbers.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        // An odd number of bytes first, so that what follows starts nowhere round.
        let bytes = file(&[
            ("a", Dtype::F16, vec![2, 3], half),
            ("b", Dtype::BF16, vec![6], brain),
            ("c", Dtype::U8, vec![3], vec![1, 2, 3]),
            ("d", Dtype::F32, vec![6], bytes_of(&numbers)),
        ]);
        let values = |key: &str, shape: &[usize]| opened(&bytes, |w| w.stem().values(key, shape));
        assert_eq!(values("a", &[2, 3]).unwrap(), numbers);
        assert_eq!(values("d", &[6]).unwrap(), numbers);
        let brain: Vec<f32> = numbers.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(values("b", &[6]).unwrap(), brain);
        assert!(values("c", &[3]).unwrap_err().to_string().contains("U8"));
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
        refused(b"a text file of more than eight bytes", "neither a safetensors file nor a PyTorch file");
        refused(b"\x80\x04 a pickle of something else", "a pickle");
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
