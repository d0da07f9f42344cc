//! Pictures of anomaly maps: overlay = (1 - a) picture + a colour(t), t = (map - low) / (high - low), a = opacity t.
//!
//! The scale is the caller's, the same for every picture: below `low` (the threshold, where there is one) nothing is
//! painted, from `high` on the colour is full. A scale taken from each picture's own extremes would paint something red
//! on every good picture.

mod figure;
mod palette;
mod regions;
mod text;

pub use figure::{Legend, figure, mask_panel};
pub use palette::colour;
pub(crate) use palette::oklch;
pub use regions::{Region, regions};

use crate::atomic::write_atomic;
use crate::{Error, Result};
use image::codecs::png::PngEncoder;
use image::{ImageError, Rgb, RgbImage};
use std::io;
use std::path::Path;

/// How much of the picture the strongest colour hides.
const OPACITY: f32 = 0.5;
const WHITE: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([24; 3]);

/// The two map values between which colours run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f32,
    high: f32,
}

impl Scale {
    /// Clear up to `low`, full colour from `high` on.
    ///
    /// Errors: [`Error::Config`] unless both are finite and `low < high`.
    pub fn new(low: f32, high: f32) -> Result<Self> {
        if low < high && low.is_finite() && high.is_finite() {
            return Ok(Self { low, high });
        }
        Err(Error::config(
            format!("a heat map cannot run from {low} to {high}"),
            "give two finite numbers, the first smaller: for example the median score of good pixels and the threshold",
        ))
    }

    /// Where nothing is painted any more.
    pub fn low(self) -> f32 {
        self.low
    }

    /// Where the colour is full.
    pub fn high(self) -> f32 {
        self.high
    }

    /// Position of `value` on the scale, in [0, 1].
    fn position(self, value: f32) -> f32 {
        // In f64 the difference of two f32 cannot overflow.
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        ((f64::from(value) - low) / (high - low)).clamp(0.0, 1.0) as f32
    }

    /// `under` seen through the colour of position `t`.
    fn paint(under: Rgb<u8>, t: f32) -> Rgb<u8> {
        let (alpha, over) = (OPACITY * t, colour(t));
        Rgb(std::array::from_fn(|c| {
            let (under, over) = (f32::from(under.0[c]), f32::from(over[c]));
            (under + alpha * (over - under)).round() as u8
        }))
    }
}

/// Lays the anomaly map `[h, w]`, resized to the picture, over the picture. With a `contour`, also outlines the regions at
/// or above that map value, white inside and dark outside.
///
/// Errors: [`Error::Shape`] if the map is not `h * w` long or anything is empty; [`Error::Data`] if it holds a NaN or
/// an infinity, which no colour should hide.
pub fn overlay(
    picture: &RgbImage,
    map: &[f32],
    h: usize,
    w: usize,
    scale: Scale,
    contour: Option<f32>,
) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    let map = resize(map, h, w, height as usize, width as usize)?;
    if let Some(bad) = map.iter().find(|value| !value.is_finite()) {
        let help = "the model has diverged or its file is damaged: train again";
        return Err(Error::data("anomaly map", format!("a value is {bad}"), help));
    }
    let mut out = picture.clone();
    for (pixel, &value) in out.pixels_mut().zip(&map) {
        *pixel = Scale::paint(*pixel, scale.position(value));
    }
    if let Some(level) = contour {
        outline(&mut out, &map, level);
    }
    Ok(out)
}

/// Bilinear resize of `[h, w]` with half-pixel centres: source = (i + 0.5) n / N - 0.5, clamped to the edge, no
/// low-pass filter; what OpenCV's `INTER_LINEAR` does.
///
/// Errors: [`Error::Shape`] if the map is not `h * w` long or a size is zero.
pub fn resize(map: &[f32], h: usize, w: usize, out_h: usize, out_w: usize) -> Result<Vec<f32>> {
    if map.len() != h * w || map.is_empty() || out_h * out_w == 0 {
        let what = format!("a map of {} values cannot be {h}x{w} and become {out_h}x{out_w}", map.len());
        return Err(Error::Shape { op: "heatmap::resize", what });
    }
    let taps = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let tap = |i: usize| {
            let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
            let first = at as usize;
            (first, (first + 1).min(from - 1), (at - first as f64) as f32)
        };
        (0..to).map(tap).collect()
    };
    let columns = taps(w, out_w);
    let mut out = Vec::with_capacity(out_h * out_w);
    for (top, bottom, t) in taps(h, out_h) {
        let row: Vec<f32> =
            map[top * w..][..w].iter().zip(&map[bottom * w..][..w]).map(|(a, b)| a + t * (b - a)).collect();
        out.extend(columns.iter().map(|&(left, right, t)| row[left] + t * (row[right] - row[left])));
    }
    Ok(out)
}

/// Outlines `map >= level`. Pixels beside the border paint a square, but only on their own side of it, so that the
/// two lines meet exactly at the border whatever their width.
pub(crate) fn outline(picture: &mut RgbImage, map: &[f32], level: f32) {
    let (width, height) = picture.dimensions();
    let inside = |x: u32, y: u32| map[(y * width + x) as usize] >= level;
    let reach = width.min(height) / 400;
    for y in 0..height {
        for x in 0..width {
            let here = inside(x, y);
            let border = (x > 0 && inside(x - 1, y) != here)
                || (x + 1 < width && inside(x + 1, y) != here)
                || (y > 0 && inside(x, y - 1) != here)
                || (y + 1 < height && inside(x, y + 1) != here);
            if !border {
                continue;
            }
            for ny in y.saturating_sub(reach)..=(y + reach).min(height - 1) {
                for nx in x.saturating_sub(reach)..=(x + reach).min(width - 1) {
                    if inside(nx, ny) == here {
                        picture.put_pixel(nx, ny, if here { WHITE } else { INK });
                    }
                }
            }
        }
    }
}

/// Fills the rectangle `[x, y, width, height]`, cut off at the picture's edge.
fn fill(picture: &mut RgbImage, [x, y, width, height]: [u32; 4], colour: Rgb<u8>) {
    let (right, bottom) =
        (x.saturating_add(width).min(picture.width()), y.saturating_add(height).min(picture.height()));
    for y in y..bottom {
        for x in x..right {
            picture.put_pixel(x, y, colour);
        }
    }
}

/// Writes a PNG whole or not at all.
///
/// Errors: [`Error::Io`].
pub fn write_png(path: impl AsRef<Path>, picture: &RgbImage) -> Result<()> {
    write_atomic(path, |writer| {
        picture.write_with_encoder(PngEncoder::new(writer)).map_err(|refused| match refused {
            ImageError::IoError(cause) => cause,
            other => io::Error::other(other),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 37 % 251) as u8, (y * 53 % 251) as u8, (x * y % 251) as u8]))
    }

    /// A ramp from 0 at the left edge to 1 at the right one.
    fn ramp(h: usize, w: usize) -> Vec<f32> {
        (0..h * w).map(|i| (i % w) as f32 / (w - 1) as f32).collect()
    }

    #[test]
    fn resizes_with_half_pixel_centres() {
        let expected = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0];
        assert_eq!(resize(&[0.0, 1.0, 2.0, 3.0], 1, 4, 1, 8).unwrap(), expected);
        assert_eq!(resize(&[0.0, 1.0, 2.0, 3.0], 4, 1, 2, 1).unwrap(), [0.5, 2.5]);
        let map = ramp(5, 6);
        assert_eq!(resize(&map, 5, 6, 5, 6).unwrap(), map);
        assert_eq!(resize(&[4.0], 1, 1, 3, 2).unwrap(), [4.0; 6]);
        for (len, h, w, out_h, out_w) in [(5, 2, 3, 4, 4), (0, 0, 3, 4, 4), (6, 2, 3, 0, 4)] {
            assert!(matches!(resize(&vec![0.5; len], h, w, out_h, out_w), Err(Error::Shape { .. })));
        }
    }

    #[test]
    fn below_low_nothing_is_painted() {
        let picture = texture(40, 30);
        let map = ramp(30, 40);
        let painted = overlay(&picture, &map, 30, 40, Scale::new(0.5, 0.75).unwrap(), None).unwrap();
        for (at, (before, after)) in picture.pixels().zip(painted.pixels()).enumerate() {
            if map[at] <= 0.5 {
                assert_eq!(before, after);
            } else if map[at] >= 0.75 {
                let [r, g, b] = colour(1.0);
                let mixed = [(before[0], r), (before[1], g), (before[2], b)];
                for (c, (under, over)) in mixed.into_iter().enumerate() {
                    let expected = (f32::from(under) + f32::from(over)) / 2.0;
                    assert!((f32::from(after[c]) - expected).abs() <= 0.5, "{at}");
                }
            }
        }
        let clear = overlay(&picture, &map, 30, 40, Scale::new(1.0, 2.0).unwrap(), Some(2.0)).unwrap();
        assert_eq!(clear, picture);
    }

    #[test]
    fn the_contour_runs_along_its_level() {
        let (picture, map) = (texture(40, 30), ramp(30, 40));
        let scale = Scale::new(0.25, 0.5).unwrap();
        let plain = overlay(&picture, &map, 30, 40, scale, None).unwrap();
        let lined = overlay(&picture, &map, 30, 40, scale, Some(0.5)).unwrap();
        let border = map.iter().position(|&value| value >= 0.5).unwrap() as u32;
        for (x, y, pixel) in lined.enumerate_pixels() {
            let expected = match x {
                x if x == border => WHITE,
                x if x + 1 == border => INK,
                _ => *plain.get_pixel(x, y),
            };
            assert_eq!(*pixel, expected, "{x} {y}");
        }
        // Wider on a large picture, and still only along the border.
        let large = overlay(&texture(900, 800), &map, 30, 40, scale, Some(0.5)).unwrap();
        let white = (0..900).filter(|&x| *large.get_pixel(x, 400) == WHITE).count();
        assert_eq!(white, 3);
    }

    #[test]
    fn refuses_bad_scales_and_maps() {
        for (low, high) in [(1.0, 1.0), (2.0, 1.0), (f32::NAN, 1.0), (0.0, f32::INFINITY)] {
            assert!(matches!(Scale::new(low, high), Err(Error::Config { .. })), "{low} {high}");
        }
        let scale = Scale::new(0.0, 1.0).unwrap();
        let mut map = ramp(3, 4);
        assert!(matches!(overlay(&texture(8, 8), &map, 4, 4, scale, None), Err(Error::Shape { .. })));
        assert!(matches!(overlay(&texture(0, 8), &map, 3, 4, scale, None), Err(Error::Shape { .. })));
        map[5] = f32::NAN;
        assert!(matches!(overlay(&texture(8, 8), &map, 3, 4, scale, None), Err(Error::Data { .. })));
    }

    #[test]
    fn a_png_comes_back_as_it_went() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlay.png");
        let picture = texture(31, 17);
        write_png(&path, &picture).unwrap();
        assert_eq!(image::open(&path).unwrap().to_rgb8(), picture);
        assert!(matches!(write_png(folder.path().join("no/overlay.png"), &picture), Err(Error::Io { .. })));
    }

    proptest! {
        #[test]
        fn any_finite_map_can_be_shown(
            (width, height, w, h) in (1_u32..40, 1_u32..40, 1_usize..9, 1_usize..9),
            values in proptest::collection::vec(proptest::num::f32::NORMAL | proptest::num::f32::ZERO, 64),
            (low, span) in (-1e30_f32..1e30, 1e25_f32..1e30),
        ) {
            // Halved twice: neighbours further apart than the largest number cannot be interpolated.
            let map: Vec<f32> = values[..h * w].iter().map(|value| value / 4.0).collect();
            let picture = texture(width, height);
            let painted = overlay(&picture, &map, h, w, Scale::new(low, low + span).unwrap(), Some(low)).unwrap();
            prop_assert_eq!(painted.dimensions(), picture.dimensions());
        }
    }
}
