//! The shipped photographs, and the camera that takes pictures of them.
//! `picture(u, v) = photograph(centre + scale * R(angle) * (u - 127.5, v - 127.5))` by Catmull-Rom interpolation,
//! then `gain * light(u, v) * (x - 128) * contrast + 128`, a slight blur, sensor noise, and rounding to 8 bits.
//! Train and test look at disjoint halves of a photograph, so nothing in test has been seen in training.

use crate::rng::Rng;
use crate::{Error, Result};

/// Width and height of every picture of the demo set, in pixels.
pub const SIZE: usize = 256;

/// One class: a photograph and how it may be looked at.
pub struct Material {
    /// Name of the class.
    pub name: &'static str,
    /// The file under `assets/demo`.
    pub bytes: &'static [u8],
    /// The halves lie side by side (else one above the other).
    pub side_by_side: bool,
    /// Pixels of the photograph per pixel of the picture, smallest and largest. A window always fits its half.
    pub scale: (f32, f32),
    /// Its mirror image looks as natural: half of the pictures show that.
    pub mirrored: bool,
    /// Brightness, relative to the photograph: below 1 where it is so light that it would clip.
    pub exposure: f32,
    /// Direction in which threads, planks or rows run, in radians from the x axis; `None` if there is none.
    pub grain: Option<f32>,
}

macro_rules! photograph {
    ($file:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/", $file))
    };
}

const VERTICAL: Option<f32> = Some(std::f32::consts::FRAC_PI_2);
const HORIZONTAL: Option<f32> = Some(0.0);

/// The classes of the demo set, in the order of their names. Origins and licences: `assets/demo/SOURCES.md`.
pub static MATERIALS: [Material; 6] = [
    Material {
        name: "brick",
        bytes: photograph!("brick.png"),
        side_by_side: true,
        scale: (0.80, 0.90),
        mirrored: true,
        exposure: 1.0,
        grain: VERTICAL,
    },
    Material {
        name: "embossed",
        bytes: photograph!("embossed.png"),
        side_by_side: false,
        scale: (0.90, 1.10),
        mirrored: false,
        exposure: 0.8,
        grain: HORIZONTAL,
    },
    Material {
        name: "ground",
        bytes: photograph!("ground.png"),
        side_by_side: false,
        scale: (0.90, 1.10),
        mirrored: false,
        exposure: 1.0,
        grain: VERTICAL,
    },
    Material {
        name: "paper",
        bytes: photograph!("paper.png"),
        side_by_side: false,
        scale: (1.00, 1.20),
        mirrored: false,
        exposure: 0.95,
        grain: None,
    },
    Material {
        name: "sand",
        bytes: photograph!("sand.png"),
        side_by_side: false,
        scale: (1.00, 1.20),
        mirrored: false,
        exposure: 1.0,
        grain: HORIZONTAL,
    },
    Material {
        name: "wood",
        bytes: photograph!("wood.png"),
        side_by_side: false,
        scale: (0.80, 0.90),
        mirrored: true,
        exposure: 1.0,
        grain: VERTICAL,
    },
];

/// Largest turn of the camera about its axis, radians (2 degrees).
const TURN: f32 = 0.035;

/// A half of a photograph, decoded: the world that one split sees. `data` is [height, width, channels], 0 to 255.
pub struct Surface {
    width: usize,
    height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    data: Vec<f32>,
    /// Mean over 8x8 blocks of the standard deviation of the brightness: how strong the texture is.
    pub roughness: f32,
    material: &'static Material,
}

impl Surface {
    /// Decodes a material and cuts it into the half for training and the half for testing.
    pub fn halves(material: &'static Material) -> Result<[Surface; 2]> {
        let photo = image::load_from_memory(material.bytes).map_err(|cause| {
            Error::data(
                material.name,
                format!("the built-in photograph: {cause}"),
                "the program is damaged: install it again",
            )
        })?;
        let (w, h) = (photo.width(), photo.height());
        let (half_w, half_h) = if material.side_by_side { (w / 2, h) } else { (w, h / 2) };
        let cut = |x, y| {
            let half = photo.crop_imm(x, y, half_w, half_h);
            let (channels, bytes) = if photo.color().has_color() {
                (3, half.into_rgb8().into_raw())
            } else {
                (1, half.into_luma8().into_raw())
            };
            let data: Vec<f32> = bytes.into_iter().map(|x| material.exposure * f32::from(x)).collect();
            let (width, height) = (half_w as usize, half_h as usize);
            let roughness = roughness(&data, width, height, channels);
            Surface { width, height, channels, data, roughness, material }
        };
        Ok([cut(0, 0), cut(w - half_w, h - half_h)])
    }

    /// See [`Material::grain`].
    pub fn grain(&self) -> Option<f32> {
        self.material.grain
    }

    /// A random view whose corners stay on the surface.
    pub fn view(&self, rng: &mut Rng) -> View {
        let scale = rng.uniform_in(self.material.scale.0, self.material.scale.1);
        let angle = rng.uniform_in(-TURN, TURN);
        let reach = scale * (SIZE / 2) as f32 * (angle.cos() + angle.sin().abs());
        let flip = if self.material.mirrored && rng.below(2) == 0 { -1.0 } else { 1.0 };
        // From the centre of the first pixel to that of the last.
        let mut place = |side: usize| rng.uniform_in(reach, (side as f32 - 1.0 - reach).max(reach));
        View { x: place(self.width), y: place(self.height), scale, angle, flip }
    }

    /// Brightness or colour at a place given in pixels of the photograph. Beyond the edge the surface is mirrored.
    pub fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let (x0, y0) = (x.floor(), y.floor());
        let (wx, wy) = (catmull_rom(x - x0), catmull_rom(y - y0));
        let columns: [usize; 4] = std::array::from_fn(|k| mirror(x0 as i64 + k as i64 - 1, self.width) * self.channels);
        let mut sum = [0.0; 3];
        for (k, wy) in wy.into_iter().enumerate() {
            let row = mirror(y0 as i64 + k as i64 - 1, self.height) * self.width * self.channels;
            for (column, wx) in columns.into_iter().zip(wx) {
                let texel = &self.data[row + column..][..self.channels];
                for (sum, value) in sum.iter_mut().zip(texel) {
                    *sum += wy * wx * value;
                }
            }
        }
        sum
    }

    /// The picture that a view shows.
    pub fn picture(&self, view: &View) -> Picture {
        let mut picture = Picture { channels: self.channels, data: Vec::with_capacity(SIZE * SIZE * self.channels) };
        for v in 0..SIZE {
            for u in 0..SIZE {
                let (x, y) = view.place(u as f32, v as f32);
                picture.data.extend_from_slice(&self.at(x, y)[..self.channels]);
            }
        }
        picture
    }
}

fn roughness(data: &[f32], width: usize, height: usize, channels: usize) -> f32 {
    const BLOCK: usize = 8;
    let brightness =
        |x: usize, y: usize| data[(y * width + x) * channels..][..channels].iter().sum::<f32>() / channels as f32;
    let (columns, rows) = (width / BLOCK, height / BLOCK);
    let mut total = 0.0;
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        let (mut sum, mut squares) = (0.0, 0.0);
        for (y, x) in (0..BLOCK).flat_map(|y| (0..BLOCK).map(move |x| (y, x))) {
            let value = brightness(column * BLOCK + x, row * BLOCK + y);
            sum += value;
            squares += value * value;
        }
        let n = (BLOCK * BLOCK) as f32;
        total += (squares / n - (sum / n).powi(2)).max(0.0).sqrt();
    }
    total / (rows * columns) as f32
}

/// Weights of the four neighbours of a point that lies `t` behind the second.
fn catmull_rom(t: f32) -> [f32; 4] {
    let (t2, t3) = (t * t, t * t * t);
    [0.5 * (-t + 2.0 * t2 - t3), 0.5 * (2.0 - 5.0 * t2 + 3.0 * t3), 0.5 * (t + 4.0 * t2 - 3.0 * t3), 0.5 * (t3 - t2)]
}

fn mirror(i: i64, n: usize) -> usize {
    if (0..n as i64).contains(&i) {
        return i as usize; // nearly always, and a division is dear
    }
    let n = n as i64;
    let i = i.rem_euclid(2 * n);
    (if i < n { i } else { 2 * n - 1 - i }) as usize
}

/// Where the camera stands: centre in pixels of the photograph, scale, turn in radians.
#[derive(Clone, Copy)]
pub struct View {
    /// Column of the centre.
    pub x: f32,
    /// Row of the centre.
    pub y: f32,
    /// Pixels of the photograph per pixel of the picture.
    pub scale: f32,
    /// Turn about the centre.
    pub angle: f32,
    /// -1 for the mirror image, else 1.
    pub flip: f32,
}

impl View {
    /// The place on the photograph that the picture shows at (u, v).
    pub fn place(&self, u: f32, v: f32) -> (f32, f32) {
        let middle = (SIZE as f32 - 1.0) / 2.0;
        let ((u, v), (sin, cos)) = ((self.flip * (u - middle), v - middle), self.angle.sin_cos());
        (self.x + self.scale * (cos * u - sin * v), self.y + self.scale * (sin * u + cos * v))
    }

    /// Where a direction on the photograph points in the picture, both in radians from the x axis.
    pub fn direction(&self, angle: f32) -> f32 {
        let turned = angle - self.angle;
        if self.flip < 0.0 { std::f32::consts::PI - turned } else { turned }
    }
}

/// What the camera sees, before light and noise: [SIZE, SIZE, channels], 0 to 255.
#[derive(Clone)]
pub struct Picture {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Row by row.
    pub data: Vec<f32>,
}

impl Picture {
    /// The values of one pixel, to be changed.
    pub fn pixel_mut(&mut self, u: usize, v: usize) -> &mut [f32] {
        let channels = self.channels;
        &mut self.data[(v * SIZE + u) * channels..][..channels]
    }
}

/// Exposure, light and sensor of one shot.
pub struct Camera {
    gain: f32,
    contrast: f32,
    /// Fall-off of the light along x and y, from edge to edge.
    slope: [f32; 2],
    /// Weight of the two neighbours in the three-tap blur.
    blur: f32,
    noise: f32,
    sensor: Rng,
}

impl Camera {
    /// A random camera: the same variation for good and for damaged pictures.
    pub fn new(mut rng: Rng) -> Self {
        let mut draw = |low, high| rng.uniform_in(low, high);
        Camera {
            gain: draw(0.93, 1.07),
            contrast: draw(0.93, 1.07),
            slope: [draw(-0.08, 0.08), draw(-0.08, 0.08)],
            blur: draw(0.0, 0.12),
            noise: draw(0.8, 2.2),
            sensor: rng,
        }
    }

    /// The 8-bit picture. The noise is the same at every call: two pictures differ only where their subjects do.
    pub fn develop(&self, picture: &Picture) -> Vec<u8> {
        let channels = picture.channels;
        let mut data = picture.data.clone();
        blur(&mut data, channels, self.blur);
        let mut sensor = self.sensor.clone();
        let unit = |i: usize| i as f32 / (SIZE - 1) as f32 - 0.5;
        let mut out = Vec::with_capacity(data.len());
        for (i, pixel) in data.chunks_exact(channels).enumerate() {
            let light = self.gain * (1.0 + self.slope[0] * unit(i % SIZE) + self.slope[1] * unit(i / SIZE));
            // The sum of four bytes is near enough to a normal value (standard deviation 147.8), and cheap.
            let bytes = sensor.next_u32().to_le_bytes().iter().map(|&b| u32::from(b)).sum::<u32>();
            let noise = self.noise * (bytes as f32 - 510.0) / 147.8;
            out.extend(pixel.iter().map(|x| (light * ((x - 128.0) * self.contrast + 128.0) + noise + 0.5) as u8));
        }
        out
    }
}

/// Three taps (w, 1 - 2w, w) along x, then along y; the edge pixel stands in for its missing neighbour.
fn blur(data: &mut [f32], channels: usize, w: f32) {
    let source = data.to_vec();
    let row = SIZE * channels;
    for (i, out) in data.iter_mut().enumerate() {
        let column = i % row;
        let left = if column < channels { i } else { i - channels };
        let right = if column + channels >= row { i } else { i + channels };
        *out = w * (source[left] + source[right]) + (1.0 - 2.0 * w) * source[i];
    }
    let source = data.to_vec();
    for (i, out) in data.iter_mut().enumerate() {
        let above = i.checked_sub(row).unwrap_or(i);
        let below = if i + row < source.len() { i + row } else { i };
        *out = w * (source[above] + source[below]) + (1.0 - 2.0 * w) * source[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_lies_on_its_half() {
        for (m, material) in MATERIALS.iter().enumerate() {
            for (h, half) in Surface::halves(material).unwrap().iter().enumerate() {
                for i in 0..200 {
                    let view = half.view(&mut Rng::new(m as u64, (h * 1000 + i) as u64));
                    for (u, v) in [(0.0, 0.0), (255.0, 0.0), (0.0, 255.0), (255.0, 255.0)] {
                        let (x, y) = view.place(u, v);
                        assert!(x >= 0.0 && x <= half.width as f32 - 1.0, "{}: x {x} of {}", material.name, half.width);
                        assert!(
                            y >= 0.0 && y <= half.height as f32 - 1.0,
                            "{}: y {y} of {}",
                            material.name,
                            half.height
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn directions_follow_the_view() {
        for flip in [1.0, -1.0] {
            let view = View { x: 40.0, y: 50.0, scale: 1.3, angle: 0.4, flip };
            for angle in [0.0_f32, 1.1, 2.5] {
                let (du, dv) = (10.0 * view.direction(angle).cos(), 10.0 * view.direction(angle).sin());
                let ((x0, y0), (x1, y1)) = (view.place(100.0, 90.0), view.place(100.0 + du, 90.0 + dv));
                let (dx, dy) = ((x1 - x0) / 13.0, (y1 - y0) / 13.0);
                assert!((dx - angle.cos()).hypot(dy - angle.sin()) <= 1e-4, "{angle} flip {flip}: ({dx}, {dy})");
            }
        }
    }

    #[test]
    fn interpolation_hits_the_pixels_and_follows_a_ramp() {
        let (width, height) = (9, 7);
        let data: Vec<f32> =
            (0..width * height).map(|i| 3.0 * (i % width) as f32 + 10.0 * (i / width) as f32).collect();
        let ramp = Surface { width, height, channels: 1, data, roughness: 0.0, material: &MATERIALS[0] };
        for (x, y) in [(2.0, 3.0), (2.25, 3.0), (4.5, 2.75), (1.1, 1.9)] {
            let got = ramp.at(x, y)[0];
            assert!((got - (3.0 * x + 10.0 * y)).abs() <= 1e-3, "({x}, {y}): {got}");
        }
        assert!((ramp.at(-1.0, 2.0)[0] - ramp.at(0.0, 2.0)[0]).abs() <= 1e-3, "mirrored beyond the edge");
    }

    #[test]
    fn the_two_halves_share_nothing() {
        for material in &MATERIALS {
            let [a, b] = Surface::halves(material).unwrap();
            assert_eq!((a.width, a.height, a.channels), (b.width, b.height, b.channels));
            // A picture made tileable often repeats itself half a width and half a height away.
            for (dx, dy) in [(0, 0), (a.width / 2, 0), (0, a.height / 2)] {
                let distance = |i: usize| {
                    let (x, y) = ((i % a.width + dx) % a.width, (i / a.width + dy) % a.height);
                    (a.data[i * a.channels] - b.data[(y * a.width + x) * a.channels]).abs()
                };
                let n = a.width * a.height;
                let mean = (0..n).map(distance).sum::<f32>() / n as f32;
                // Of two independent places it is above 1.1 times the roughness.
                assert!(mean > 0.5 * a.roughness, "{}: {mean} at ({dx}, {dy})", material.name);
            }
            assert!(a.roughness > 1.0 && b.roughness > 1.0, "{}: flat", material.name);
        }
    }
}
