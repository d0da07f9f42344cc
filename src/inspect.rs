//! What a model knows of a picture: where its coordinates lie, and what the global grid holds there.
//!
//! ```text
//! x [N, H, W, C] -> head -> local coordinates [N, H, W, 2], global coordinates [N, 2]       both in (−1, 1)
//! x              -> head -> reconstruction [H, W, C] before the gate
//! (a, b)         -> global grid, bilinear -> map [H, W, C];  with the local part of a picture -> reconstruction
//! ```
//! Source: figures 3 and 4 of arXiv 2402.18293.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::detector::Detector;
use crate::device::Device;
use crate::error::Result;
use crate::nn::{Context, Params};
use crate::ops::GridSample;
use crate::tape::Tape;
use crate::tensor::Tensor;

/// The two pairs of coordinates that a picture is rebuilt from, horizontal first.
#[derive(Debug, Clone, PartialEq)]
pub struct Coordinates {
    /// One pair for each position, `[H, W, 2]`; `None` without a local branch, or where it has no coordinates.
    pub local: Option<Vec<f32>>,
    /// One pair; `None` without a global branch, or where it has no coordinates.
    pub global: Option<[f32; 2]>,
}

/// The coordinates of pictures, from their features, each `[H, W, C]`.
///
/// # Errors
/// What a device refuses; [`crate::Error::Shape`] for features of another size.
pub fn coordinates(detector: &Detector, features: &[&[f32]]) -> Result<Vec<Coordinates>> {
    if !detector.head.config().memory.has_coordinates() {
        return Ok(vec![Coordinates { local: None, global: None }; features.len()]);
    }
    let of = |x: &&[f32]| {
        let seen: RefCell<[Option<Tensor>; 2]> = RefCell::default();
        let observer = |name: &str, value: &Tensor| match name {
            "local_coord" => seen.borrow_mut()[0] = Some(value.clone()),
            "global_coord" => seen.borrow_mut()[1] = Some(value.clone()),
            _ => {}
        };
        let context = Context::eval(&detector.params).observed(&observer);
        detector.head.score(&context, &detector.placed(&[x])?)?;
        let values = |t: Option<Tensor>| t.map(|t| Ok(t.to_host()?.data().to_vec())).transpose();
        let [local, global] = seen.take();
        let global: Option<Vec<f32>> = values(global)?;
        Ok(Coordinates { local: values(local)?, global: global.map(|pair| [pair[0], pair[1]]) })
    };
    match detector.params.storage().gpu() {
        None => features.par_iter().map(of).collect(),
        Some(_) => features.iter().map(of).collect(),
    }
}

/// What the head makes of features, each `[H, W, C]`, before the gate mixes the features themselves in again.
///
/// # Errors
/// As [`coordinates`].
pub fn reconstructions(detector: &Detector, features: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
    match detector.params.storage().gpu() {
        None => features.par_iter().map(|x| reconstruction(detector, &detector.params, x)).collect(),
        Some(_) => features.iter().map(|x| reconstruction(detector, &detector.params, x)).collect(),
    }
}

fn reconstruction(detector: &Detector, params: &Params, x: &[f32]) -> Result<Vec<f32>> {
    let seen: RefCell<Option<Tensor>> = RefCell::default();
    let observer = |name: &str, value: &Tensor| {
        if name == "reconstruction" {
            *seen.borrow_mut() = Some(value.clone());
        }
    };
    let context = Context::eval(params).observed(&observer);
    let refined = detector.head.forward(&context, &detector.placed(&[x])?, None)?;
    Ok(seen.take().unwrap_or(refined).to_host()?.data().to_vec())
}

/// What the head makes of a point of the global grid, `[H, W, C]`, before the gate: the local branch reads what it does
/// for a picture with the features `local`. `None` without a global grid.
///
/// # Errors
/// As [`coordinates`].
pub fn reconstruction_at(detector: &Detector, at: [f32; 2], local: &[f32]) -> Result<Option<Vec<f32>>> {
    let mut params = detector.params.to(&Device::Cpu)?;
    let [weight, bias] = ["weight", "bias"].map(|part| params.find(&format!("global_coord.1.{part}")));
    let (Some(weight), Some(bias)) = (weight, bias) else { return Ok(None) };
    // The last layer of the coordinates' network, tanh(m · weight + bias), made to say `at` of any picture.
    params.get_mut(weight).fill(0.0);
    params.get_mut(bias).copy_from_slice(&at.map(f32::atanh));
    reconstruction(detector, &params.to(&detector.device())?, local).map(Some)
}

/// What the global grid holds at a point, `[H, W, C]`; `None` where there is none.
///
/// # Errors
/// What a device refuses.
pub fn sample_global(detector: &Detector, [a, b]: [f32; 2]) -> Result<Option<Vec<f32>>> {
    let Some(grid) = detector.params.find("global_grid") else { return Ok(None) };
    let grid = detector.params.tensor(grid).to_host()?;
    let read = Tape::off().apply(GridSample {}, &[&grid, &Tensor::from_slice([1, 2], &[a, b])])?;
    Ok(Some(read.data().to_vec()))
}
