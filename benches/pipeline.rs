//! From a picture file to what the network is fed: `cargo bench --bench pipeline`. One thread, 1024 x 1024 pixels to 224.
//!
//! The picture is noise under a slow gradient: noise alone would be the worst case of every codec, and zeros the best.

use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grad::data::resize::{Bilinear, nearest};
use grad::data::{Picture, decode_bytes, preprocess};
use grad::rng::Rng;
use image::{ImageFormat, RgbImage};

const SIDE: usize = 1024;
const SIZE: usize = 224;

fn picture() -> RgbImage {
    let mut rng = Rng::new(0, 0);
    RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
        let base = [x / 6, y / 6, (x + y) / 12];
        image::Rgb(base.map(|v| (v + rng.next_u32() % 16) as u8))
    })
}

fn pipeline(c: &mut Criterion) {
    let image = picture();
    let rgb = image.as_raw();
    let file = |format| {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).expect("the format holds RGB");
        bytes.into_inner()
    };
    let mut group = c.benchmark_group("pipeline");
    group.sample_size(20).throughput(Throughput::Elements(1));
    for (name, format) in [("decode_png", ImageFormat::Png), ("decode_jpeg", ImageFormat::Jpeg)] {
        let bytes = file(format);
        group.bench_function(name, |b| {
            b.iter(|| decode_bytes(Path::new(name), black_box(&bytes)).expect("it is whole"))
        });
    }
    let plan = Bilinear::new((SIDE, SIDE), (SIZE, SIZE));
    group.bench_function("resize_bilinear", |b| b.iter(|| plan.apply(black_box(rgb), 3)));
    let mask: Vec<u8> = rgb.chunks(3).map(|pixel| pixel[0]).collect();
    group.bench_function("resize_nearest", |b| b.iter(|| nearest(black_box(&mask), (SIDE, SIDE), (SIZE, SIZE))));
    let picture = Picture { width: SIDE, height: SIDE, rgb: rgb.clone() };
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    group.bench_function("preprocess", |b| b.iter(|| preprocess(black_box(&picture), SIZE, mean, std)));
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
