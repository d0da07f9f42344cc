//! EfficientNet up to the second tap: stem, inverted bottlenecks (MBConv), and the neck that joins both taps.
//!
//! ```text
//! stem     h = act(conv 3x3, stride 2)
//! block    h = act(conv 1x1(x))                    where it expands
//!          h = act(depthwise k x k(h))
//!          h = h · sigmoid(W2 · swish(W1 · mean(h) + b1) + b2)    squeeze-excite, B4 only
//!          y = conv 1x1(h)  (+ x where stride is 1 and the width stays)
//! neck     concat(tap A, tap B enlarged twice, corners aligned)
//! ```
//! BatchNorm is folded into the convolutions. x: `[N, S, S, 3]`, features: `[N, S/8, S/8, C]`, C = 152, 168 or 216.
//! Source: EfficientNet (arXiv 1905.11946) and its Lite variants; weights under the key names of
//! `lukemelas/EfficientNet-PyTorch`. Specification 4 and 5.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::names::{Names, Naming, Place, check_digits};
use super::plan::{Network, Plan, Stage};
use super::source::Source;
use super::weights::Weights;
use crate::buffer::Buffer;
use crate::device::Device;
use crate::device::cuda::Gpu;
use crate::error::{Error, Result};
use crate::nn::frozen::{Frozen, FrozenGate};
use crate::ops::{Concat, Conv2d, DepthwiseConv2d, Kind, UpsampleBilinear};
use crate::tape::Tape;
use crate::tensor::Tensor;

/// One inverted bottleneck.
pub(super) struct Block {
    expand: Option<Frozen>,
    depthwise: Frozen,
    kernel: usize,
    stride: usize,
    squeeze: Option<FrozenGate>,
    project: Frozen,
    residual: bool,
}

/// A frozen network with its weights, in host memory or on a device. Shared by all threads.
pub struct Backbone {
    network: Network,
    origin: Origin,
    stem: Frozen,
    blocks: Vec<Block>,
}

/// Where the weights come from.
#[derive(Clone)]
struct Origin {
    path: PathBuf,
    /// Of the values.
    digest: blake3::Hash,
    /// Of the file.
    file: blake3::Hash,
    naming: Naming,
    doubts: Vec<String>,
}

/// Where the built-in weights lie in the source tree, for messages.
const BUILT_IN: &str = "assets/backbone/efficientnet-lite0.safetensors";

impl Backbone {
    /// EfficientNet-Lite0 with the weights that come with the program.
    ///
    /// # Errors
    /// None, unless the program was built from a damaged file.
    pub fn lite0() -> Result<Self> {
        let bytes = include_bytes!("../../assets/backbone/efficientnet-lite0.safetensors");
        Self::from_bytes(Network::Lite0, Path::new(BUILT_IN), bytes)
    }

    /// A network with the weights of a file, safetensors or PyTorch's, under names that are known ([`Naming`]), in the
    /// layouts of the published files; other tensors are ignored.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Model`] when it is incomplete, of another kind, holds another
    /// network, lacks a tensor, or has one of another shape or with a value that is not finite.
    pub fn load(network: Network, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
        Self::from_bytes(network, path, &bytes)
    }

    fn from_bytes(network: Network, path: &Path, bytes: &[u8]) -> Result<Self> {
        let plan = network.plan();
        let refuse = |what| Error::model(path, what, plan.help);
        let source = Source::parse(path, plan.help, bytes)?;
        let names = Names::detect(&source).map_err(refuse)?;
        let mut doubts: Vec<String> = check_digits(path, bytes).into_iter().collect();
        doubts.extend(names.check_file_name(path).map_err(refuse)?.map(|doubt| format!("{}: {doubt}", path.display())));
        let weights = Weights::new(path, plan.help, &source, &names, false);
        let (stem, blocks) = Self::read(plan, &weights)?;
        let (digest, file) = (weights.digest(), blake3::hash(bytes));
        Ok(Backbone {
            network,
            origin: Origin { path: path.into(), digest, file, naming: names.naming, doubts },
            stem,
            blocks,
        })
    }

    /// The layers of a network; in a survey of a file that does not fit they are not to be used.
    pub(super) fn read(plan: &Plan, weights: &Weights) -> Result<(Frozen, Vec<Block>)> {
        let stem = weights.stem().normalised("_conv_stem", "_bn0", [plan.stem, 3, 3, 3])?;
        let (mut blocks, mut inputs) = (Vec::new(), plan.stem);
        for (at, stage) in plan.stages.iter().enumerate() {
            for repeat in 0..stage.repeats {
                let place = Place { index: blocks.len(), stage: at, repeat, expands: stage.expand > 1 };
                blocks.push(Block::read(weights, plan, stage, place, inputs)?);
                inputs = stage.outputs;
            }
        }
        Ok((stem, blocks))
    }

    /// The same network on another device.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let blocks = self.blocks.iter().map(|block| block.to(device)).collect::<Result<_>>()?;
        Ok(Backbone { network: self.network, origin: self.origin.clone(), stem: self.stem.to(device)?, blocks })
    }

    /// The device its weights lie on; `None` for host memory.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.stem.weight.gpu()
    }

    /// Which network it is.
    pub fn network(&self) -> Network {
        self.network
    }

    /// `efficientnet-lite0` and so on.
    pub fn name(&self) -> &'static str {
        self.network.plan().name
    }

    /// Where the weights come from.
    pub fn path(&self) -> &Path {
        &self.origin.path
    }

    /// Whose names the file has.
    pub fn naming(&self) -> Naming {
        self.origin.naming
    }

    /// Identity of the weights, as far as they are used: BLAKE3 of names and values, the same for every file that holds
    /// them, of whatever kind.
    pub fn digest(&self) -> blake3::Hash {
        self.origin.digest
    }

    /// Whether a model that was trained on weights of this digest was trained on these; models of earlier versions hold
    /// the digest of the file.
    pub fn is(&self, digest: &str) -> bool {
        [self.origin.digest, self.origin.file].iter().any(|own| own.to_hex().as_str() == digest)
    }

    /// What speaks against the file, although it can be used.
    pub fn doubts(&self) -> &[String] {
        &self.origin.doubts
    }

    /// Channels of the features: 152 for Lite0 and Lite1, 168 for Lite2, 216 for B4.
    pub fn channels(&self) -> usize {
        self.network.plan().channels
    }

    /// Height and width of the features of a picture of `input` pixels.
    pub fn feature_size(&self, input: usize) -> usize {
        input / 8
    }

    /// Mean of each colour, in units of 255: the network is fed `(v/255 − mean) / std`.
    pub fn mean(&self) -> [f32; 3] {
        self.network.plan().mean
    }

    /// Standard deviation of each colour, in units of 255.
    pub fn std(&self) -> [f32; 3] {
        self.network.plan().std
    }

    /// Whether pictures of `size` by `size` pixels can be used: both taps must cover the picture evenly.
    ///
    /// # Errors
    /// [`Error::Config`] unless it is a multiple of 16, and at least 16.
    pub fn check_size(&self, size: usize) -> Result<()> {
        if size >= 16 && size.is_multiple_of(16) {
            return Ok(());
        }
        let near = (size.max(16) + 8) / 16 * 16;
        Err(Error::config(
            format!("pictures cannot be {size} pixels wide: not a multiple of 16"),
            format!("use {near}"),
        ))
    }

    /// Zero padding `[top, bottom, left, right]` of the stem and of each block's depthwise convolution, for a picture of
    /// this size: TensorFlow's "SAME" rule. B4 keeps the padding of its native 380 pixels at every size.
    pub fn pads(&self, height: usize, width: usize) -> Vec<[usize; 4]> {
        let [mut h, mut w] = self.network.plan().native.map_or([height, width], |size| [size; 2]);
        let strided = std::iter::once((3, 2)).chain(self.blocks.iter().map(|b| (b.kernel, b.stride)));
        strided
            .map(|(kernel, stride)| {
                let (top, bottom) = same_padding(&mut h, kernel, stride);
                let (left, right) = same_padding(&mut w, kernel, stride);
                [top, bottom, left, right]
            })
            .collect()
    }

    /// Pictures of `size` by `size` pixels, each `[size, size, 3]`, as the input of [`Self::forward`]: where the weights lie.
    ///
    /// # Errors
    /// What a device refuses.
    ///
    /// # Panics
    /// If a picture is of another size.
    pub fn input(&self, size: usize, pictures: &[&[f32]]) -> Result<Tensor> {
        let x = Tensor::from_slice([pictures.len(), size, size, 3], &pictures.concat());
        self.gpu().map_or(Ok(x.clone()), |gpu| x.to_gpu(gpu, false))
    }

    /// Features of pictures x: `[N, H, W, 3]`, normalised, sides multiples of 16, where the weights lie. Returns
    /// `[N, H/8, W/8, C]`: tap A, then tap B enlarged to its size. The features of a picture depend on no other.
    ///
    /// # Errors
    /// [`Error::Shape`] for any other shape, and what a device refuses.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [n, h, w] = expect_pictures(x)?;
        if x.gpu().is_some() {
            return self.features(x);
        }
        let shape = [n, h / 8, w / 8, self.channels()];
        let mut features = Buffer::scratch(shape.iter().product());
        // One picture at a time on each thread: a layer finds in the cache what the last one left, memory does not grow
        // with N, and threads meet once per picture instead of once per layer.
        let pictures = x.data().par_chunks_exact(h * w * 3);
        features.par_chunks_exact_mut(shape[1..].iter().product()).zip(pictures).try_for_each(|(y, x)| {
            y.copy_from_slice(self.features(&Tensor::from_slice([1, h, w, 3], x))?.data());
            Ok::<_, Error>(())
        })?;
        Ok(Tensor::new(shape, features))
    }

    /// Both taps of all pictures at once, joined.
    fn features(&self, x: &Tensor) -> Result<Tensor> {
        let [a, b] = self.taps(x)?;
        let (tape, [height, width]) = (Tape::off(), [a.shape()[1], a.shape()[2]]);
        let b = tape.apply(UpsampleBilinear { height, width }, &[&b])?;
        tape.apply(Concat {}, &[&a, &b])
    }

    /// Outputs of both tapped blocks, `[N, H/8, W/8, A]` and `[N, H/16, W/16, B]`, for x as in [`Self::forward`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn taps(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let [_, h, w] = expect_pictures(x)?;
        let (plan, pads) = (self.network.plan(), self.pads(h, w));
        let stem = Conv2d { stride: 2, pad: pads[0], act: plan.act };
        let mut h = self.stem.conv2d(x, stem, None)?;
        let mut tap = None;
        for (i, (block, &pad)) in self.blocks.iter().zip(&pads[1..]).enumerate() {
            h = block.forward(&h, plan.act, pad)?;
            if i == plan.taps[0] {
                tap = Some(h.clone());
            }
        }
        Ok([tap.expect("the first tap comes before the last block"), h])
    }
}

impl Block {
    /// The block of this place, the first of its stage or a repeat.
    fn read(weights: &Weights, plan: &Plan, stage: &Stage, place: Place, inputs: usize) -> Result<Self> {
        let (hidden, kernel) = (inputs * stage.expand, stage.kernel);
        let stride = if place.repeat == 0 { stage.stride } else { 1 };
        let w = weights.block(place);
        let squeezed = (inputs / 4).max(1);
        Ok(Block {
            expand: (stage.expand > 1)
                .then(|| w.normalised("_expand_conv", "_bn0", [hidden, inputs, 1, 1]))
                .transpose()?,
            depthwise: w.normalised("_depthwise_conv", "_bn1", [hidden, 1, kernel, kernel])?,
            kernel,
            stride,
            squeeze: match plan.squeeze {
                true => Some(FrozenGate {
                    layers: [
                        (w.biased("_se_reduce", [squeezed, hidden, 1, 1])?, Kind::Swish),
                        (w.biased("_se_expand", [hidden, squeezed, 1, 1])?, Kind::Sigmoid),
                    ],
                    act: Kind::Identity,
                }),
                false => None,
            },
            project: w.normalised("_project_conv", "_bn2", [stage.outputs, hidden, 1, 1])?,
            residual: stride == 1 && inputs == stage.outputs,
        })
    }

    fn to(&self, device: &Device) -> Result<Self> {
        Ok(Block {
            expand: self.expand.as_ref().map(|layer| layer.to(device)).transpose()?,
            depthwise: self.depthwise.to(device)?,
            squeeze: self.squeeze.as_ref().map(|gate| gate.to(device)).transpose()?,
            project: self.project.to(device)?,
            ..*self
        })
    }

    fn forward(&self, x: &Tensor, act: Kind, pad: [usize; 4]) -> Result<Tensor> {
        let mut h = match &self.expand {
            Some(expand) => expand.pointwise(x, act, None)?,
            None => x.clone(),
        };
        h = self.depthwise.depthwise(&h, DepthwiseConv2d { stride: self.stride, pad, act })?;
        if let Some(gate) = &self.squeeze {
            h = gate.forward(&h)?;
        }
        self.project.pointwise(&h, Kind::Identity, self.residual.then_some(x))
    }
}

/// `[N, H, W]` of pictures that can be used.
fn expect_pictures(x: &Tensor) -> Result<[usize; 3]> {
    match x.shape().nhwc() {
        Some((n, h, w, 3)) if n * h * w > 0 && h.is_multiple_of(16) && w.is_multiple_of(16) => Ok([n, h, w]),
        _ => Err(Error::Shape {
            op: "backbone",
            what: format!("x must be [N, H, W, 3] with sides that are multiples of 16, got {}", x.shape()),
        }),
    }
}

/// Zeros before and after on one axis so that `size` becomes `⌈size / stride⌉`, the odd one after.
fn same_padding(size: &mut usize, kernel: usize, stride: usize) -> (usize, usize) {
    let out = size.div_ceil(stride);
    let total = ((out - 1) * stride + kernel).saturating_sub(*size);
    *size = out;
    (total / 2, total - total / 2)
}
