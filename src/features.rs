//! Features of pictures, computed once: the backbone is frozen and nothing is augmented, so they never change.
//!
//! ```text
//! picture file -> bytes -> key = BLAKE3(format, backbone, weights, size, preprocessing, what computes, bytes)
//!     record `CACHE/NAME-SIZE-WEIGHTS/KEY.features` there and whole?  -> map it
//!     else decode -> resize -> backbone -> write the record           -> map it
//! ```
//! All of it on all threads. On the CPU a thread takes one picture from end to end; on a device the backbone takes a
//! [`batch`] at once, as bytes and one at a time (`on_device`), while the threads prepare the next ones. The features of a
//! picture do not depend on the pictures beside it.
//!
//! One file per picture: `[magic, 32 bytes][keyed BLAKE3 of the values, 32 bytes][H W C values, f32]`. Whatever can
//! change the values is part of the key, so no record is ever out of date, and none is ever changed: it is written
//! beside, synced and renamed into place ([`write_atomic`]). A killed program leaves whole records only, and programs
//! that share a folder at worst compute the same record twice. Every record is checked when it is opened; a damaged one
//! is computed again and reported ([`Features::warnings`]). Deleting any of it costs only the time to compute it again.

mod on_device;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;
use rayon::prelude::*;

use crate::atomic::write_atomic;
use crate::backbone::Backbone;
use crate::buffer::Buffer;
use crate::data::{decode_bytes, normalised, resized};
use crate::device::cpu::products;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::train::FeatureSource;
use on_device::Extractor;

/// First bytes of a record. The number is that of the format **and of the computation**: raise it when decoding, resizing
/// or the backbone begin to give other values.
const MAGIC: [u8; 32] = *b"GRAD features 1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Bytes before the values: magic and checksum. A multiple of 4, so that the mapped values are aligned.
const HEADER: usize = 64;

/// Pictures of `size` by `size` pixels that go through a network at once on a device: enough to fill a large one, few enough
/// to fit into a small one.
pub fn batch(size: usize) -> usize {
    const PIXELS: usize = 16 * 224 * 224;
    (PIXELS / (size * size).max(1)).clamp(1, 16)
}

/// Features `[H, W, C]` of a list of pictures.
pub struct Features {
    records: Vec<Record>,
    shape: [usize; 3],
    computed: usize,
    warnings: Vec<String>,
}

enum Record {
    Mapped(Mmap),
    Memory(Buffer),
}

impl Features {
    /// Features of the pictures in the files `items`, each prepared at `size` by `size` pixels. What `cache` holds is
    /// mapped, the rest is computed where the backbone lies and added to it; without a cache all is computed and kept in
    /// memory. `progress(done, total)` is called from any thread, once per picture.
    ///
    /// A cache that holds every record may be read-only. One that cannot take a new record ends the call, at the first
    /// picture when it is not writable at all: going on would fill the memory with what was meant for the disk. What
    /// was written before stays valid.
    ///
    /// # Errors
    /// [`Error::Config`] for a size the backbone cannot use, [`Error::Io`] and [`Error::Data`] for a picture that cannot
    /// be read, [`Error::Io`] for a cache that cannot be written, [`Error::Model`] when the weights overflow on a picture,
    /// and what a device refuses.
    pub fn open_or_compute(
        cache: Option<&Path>,
        backbone: &Backbone,
        size: usize,
        items: &[impl AsRef<Path> + Sync],
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        backbone.check_size(size)?;
        let (source, done) = (Source::new(cache, backbone, size)?, AtomicUsize::new(0));
        let step = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, items.len());
        let batch = backbone.gpu().map_or(1, |_| batch(size));
        let found = items.par_chunks(batch).map(|paths| source.find(paths, &step)).collect::<Result<Vec<_>>>()?;
        let found: Vec<Found> = found.into_iter().flatten().collect();
        Ok(Features {
            shape: source.shape,
            computed: found.iter().filter(|f| f.computed).count(),
            warnings: found.iter().filter_map(|f| f.warning.clone()).collect(),
            records: found.into_iter().map(|f| f.record).collect(),
        })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// `[H, W, C]` of each picture's features.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Features `[H, W, C]` of picture `i`, in the order of the list.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn get(&self, i: usize) -> &[f32] {
        match &self.records[i] {
            Record::Mapped(map) => bytemuck::cast_slice(&map[HEADER..]),
            Record::Memory(values) => values,
        }
    }

    /// How many pictures had to be computed; the others were in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// One line for each damaged record that was found and replaced, in the order of the list.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Mean of the squares of all values of the given pictures; NaN when there are none. The same bits on any number of
    /// threads.
    ///
    /// # Panics
    /// If there are not that many pictures.
    pub fn mean_square(&self, indices: &[usize]) -> f64 {
        let sums: Vec<f64> = indices.par_iter().map(|&i| sum_of_squares(self.get(i))).collect();
        let count = indices.len() * self.shape.iter().product::<usize>();
        sums.iter().sum::<f64>() / count as f64
    }
}

impl FeatureSource for Features {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn get(&self, i: usize) -> &[f32] {
        self.get(i)
    }
}

/// Σ v², in f64.
fn sum_of_squares(values: &[f32]) -> f64 {
    // Eight sums side by side, so that the loop vectorises; added up in order.
    let (blocks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for block in blocks {
        for (sum, &v) in sums.iter_mut().zip(block) {
            *sum += f64::from(v) * f64::from(v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()
}

/// What one picture came to.
struct Found {
    record: Record,
    computed: bool,
    warning: Option<String>,
}

/// What the cache has of a picture.
enum Looked<'a> {
    Cached(Mmap),
    Lacking(Lacking<'a>),
}

/// A picture whose features have to be computed.
struct Lacking<'a> {
    path: &'a Path,
    /// As the backbone sees it, `[size, size, 3]`.
    pixels: Vec<u8>,
    /// Where the record goes, and its key, if there is a cache.
    place: Option<(PathBuf, blake3::Hash)>,
    warning: Option<String>,
}

impl Looked<'_> {
    fn pixels(&self) -> Option<&[u8]> {
        match self {
            Looked::Cached(_) => None,
            Looked::Lacking(lacking) => Some(&lacking.pixels),
        }
    }
}

/// Where features come from: a folder of records, and what computes those that it lacks.
struct Source<'a> {
    backbone: &'a Backbone,
    size: usize,
    shape: [usize; 3],
    /// Everything that goes into a key but the picture.
    key: blake3::Hasher,
    folder: Option<PathBuf>,
    /// `None` where the CPU computes.
    extractor: Option<Extractor<'a>>,
}

impl<'a> Source<'a> {
    fn new(cache: Option<&Path>, backbone: &'a Backbone, size: usize) -> Result<Self> {
        let side = backbone.feature_size(size);
        let (name, digest) = (backbone.name(), backbone.digest());
        let mut key = blake3::Hasher::new();
        // Parts of fixed length, or ended by a byte that they cannot hold.
        key.update(&MAGIC).update(name.as_bytes()).update(b"\0").update(digest.as_bytes());
        key.update(&(size as u64).to_le_bytes());
        key.update(b"RGB, upright, 8 bit, Pillow bilinear to a square, (v / 255 - mean) / std\0");
        backbone.mean().into_iter().chain(backbone.std()).for_each(|v| _ = key.update(&v.to_le_bytes()));
        // Instructions and devices round differently, and values are stored in the byte order of the machine.
        let computes = backbone.gpu().map_or(products().key(), |gpu| {
            let (facts, [major, minor]) = (gpu.facts(), gpu.facts().architecture);
            format!("{} {major}.{minor} {}", facts.name, gpu.precision().name())
        });
        key.update(computes.as_bytes()).update(b"\0").update(&1u32.to_ne_bytes());
        let folder = cache.map(|cache| cache.join(format!("{name}-{size}-{}", &digest.to_hex()[..8])));
        let shape = [side, side, backbone.channels()];
        Ok(Source { backbone, size, shape, key, folder, extractor: Extractor::new(backbone, size)? })
    }

    /// The features of some picture files; `step` is called for each when it is done.
    fn find<'p>(&self, paths: &'p [impl AsRef<Path> + Sync], step: &(impl Fn() + Sync)) -> Result<Vec<Found>> {
        let looked = paths.par_iter().map(|path| self.look_up(path.as_ref())).collect::<Result<Vec<_>>>()?;
        let pixels: Vec<&[u8]> = looked.iter().filter_map(Looked::pixels).collect();
        let computed = self.compute(&pixels)?;
        let mut computed = computed.data().chunks_exact(self.shape.iter().product());
        let with_values = |looked: Looked<'p>| {
            let values = if looked.pixels().is_some() { computed.next() } else { None };
            (looked, values.unwrap_or_default())
        };
        let all: Vec<_> = looked.into_iter().map(with_values).collect();
        let keep = |(looked, values)| {
            let found = self.keep(looked, values)?;
            step();
            Ok(found)
        };
        all.into_par_iter().map(keep).collect()
    }

    /// Reads a picture file, once: what is hashed is what is decoded.
    fn look_up<'p>(&self, path: &'p Path) -> Result<Looked<'p>> {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
        let place = self.folder.as_ref().map(|folder| {
            let key = self.key.clone().update(&bytes).finalize();
            (folder.join(format!("{}.features", key.to_hex())), key)
        });
        let warning = match &place {
            None => None,
            Some((file, key)) => match self.open(file, key) {
                Ok(Some(map)) => return Ok(Looked::Cached(map)),
                Ok(None) => None,
                Err(what) => Some(format!("{}: {what}, computed again", file.display())),
            },
        };
        let picture = decode_bytes(path, &bytes)?;
        Ok(Looked::Lacking(Lacking { path, pixels: resized(&picture, self.size), place, warning }))
    }

    /// Features of pictures, in host memory.
    fn compute(&self, pixels: &[&[u8]]) -> Result<Tensor> {
        if pixels.is_empty() {
            return Ok(Tensor::from_slice([0], &[]));
        }
        if let Some(extractor) = &self.extractor {
            return extractor.features(pixels);
        }
        let prepare = |bytes: &&[u8]| normalised(bytes, self.backbone.mean(), self.backbone.std());
        let prepared: Vec<Vec<f32>> = pixels.iter().map(prepare).collect();
        let prepared: Vec<&[f32]> = prepared.iter().map(Vec::as_slice).collect();
        self.backbone.forward(&self.backbone.input(self.size, &prepared)?)
    }

    /// Keeps the features of a picture in the cache, if there is one.
    fn keep(&self, looked: Looked, values: &[f32]) -> Result<Found> {
        let Lacking { path, place, warning, .. } = match looked {
            Looked::Cached(map) => return Ok(Found { record: Record::Mapped(map), computed: false, warning: None }),
            Looked::Lacking(lacking) => lacking,
        };
        if !values.iter().all(|v| v.is_finite()) {
            return Err(Error::model(
                self.backbone.path(),
                format!("gives features that are not finite for {}", path.display()),
                "the weights are out of range: take the published file",
            ));
        }
        let Some((file, key)) = place else {
            let record = Record::Memory(values.into());
            return Ok(Found { record, computed: true, warning });
        };
        write_record(&file, &key, bytemuck::cast_slice(values))?;
        match self.open(&file, &key) {
            Ok(Some(map)) => Ok(Found { record: Record::Mapped(map), computed: true, warning }),
            Ok(None) => Err(lost(&file, "it is gone")),
            Err(what) => Err(lost(&file, &what)),
        }
    }

    /// Maps a record: `None` when there is none, a description of the damage when it cannot be used.
    fn open(&self, path: &Path, key: &blake3::Hash) -> Result<Option<Mmap>, String> {
        let unreadable = |e: std::io::Error| format!("cannot be read ({e})");
        let file = match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(unreadable)?,
        };
        // SAFETY: a record is never modified or cut: this crate creates it under another name, renames it into place
        // when it is whole, and replaces it by another rename, which leaves the mapped one as it is. The size is checked
        // against the mapping itself, below.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let length = HEADER + self.shape.iter().product::<usize>() * size_of::<f32>();
        if map.len() != length {
            return Err(format!("has {} bytes instead of {length}", map.len()));
        }
        if map[..32] != MAGIC || map[32..HEADER] != *checksum(key, &map[HEADER..]).as_bytes() {
            return Err("is damaged (its checksum does not fit)".into());
        }
        Ok(Some(map))
    }
}

/// Binds the values to the key they are stored under.
fn checksum(key: &blake3::Hash, values: &[u8]) -> blake3::Hash {
    blake3::keyed_hash(key.as_bytes(), values)
}

fn write_record(file: &Path, key: &blake3::Hash, values: &[u8]) -> Result<()> {
    let (checksum, folder) = (checksum(key, values), file.parent().unwrap_or(Path::new("")));
    fs::create_dir_all(folder)
        .map_err(|e| Error::io("create", folder, &e))
        .and_then(|()| {
            write_atomic(file, |w| {
                w.write_all(&MAGIC)?;
                w.write_all(checksum.as_bytes())?;
                w.write_all(values)
            })
        })
        .map_err(|error| match error {
            Error::Io { action, path, cause, help } => {
                Error::Io { action, path, cause, help: format!("{help}; or use another cache folder, or none") }
            }
            other => other,
        })
}

/// A record that was written a moment ago and cannot be used.
fn lost(file: &Path, what: &str) -> Error {
    Error::Io {
        action: "read back",
        path: file.into(),
        cause: what.into(),
        help: "another program empties the cache folder, or its disk is failing: use another cache folder, or none"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::preprocess;
    use crate::rng::Rng;
    use std::sync::Mutex;
    use tempfile::TempDir;

    const SIZE: usize = 32;

    /// A folder with pictures of noise and an empty cache.
    struct Bench {
        folder: TempDir,
        backbone: Backbone,
        items: Vec<PathBuf>,
    }

    impl Bench {
        fn new(pictures: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let items: Vec<_> = (0..pictures).map(|i| folder.path().join(format!("{i}.png"))).collect();
            items.iter().enumerate().for_each(|(i, path)| picture(path, i as u64));
            Bench { folder, backbone: Backbone::lite0().unwrap(), items }
        }

        fn cache(&self) -> PathBuf {
            self.folder.path().join("cache")
        }

        fn open(&self, size: usize) -> Features {
            Features::open_or_compute(Some(&self.cache()), &self.backbone, size, &self.items, &|_, _| {}).unwrap()
        }

        fn uncached(&self) -> Features {
            Features::open_or_compute(None, &self.backbone, SIZE, &self.items, &|_, _| {}).unwrap()
        }

        /// The files of the cache, in the order of their names.
        fn records(&self) -> Vec<PathBuf> {
            let mut files: Vec<_> = fs::read_dir(self.cache())
                .unwrap()
                .flat_map(|store| fs::read_dir(store.unwrap().path()).unwrap())
                .map(|e| e.unwrap().path())
                .collect();
            files.sort();
            files
        }
    }

    fn picture(path: &Path, seed: u64) {
        let mut rng = Rng::new(seed, 0);
        let rgb = (0..20 * 24 * 3).map(|_| rng.below(256) as u8).collect();
        image::RgbImage::from_raw(24, 20, rgb).unwrap().save(path).unwrap();
    }

    fn all(features: &Features) -> Vec<Vec<u32>> {
        (0..features.len()).map(|i| features.get(i).iter().map(|v| v.to_bits()).collect()).collect()
    }

    #[test]
    fn computes_once_and_gives_what_the_backbone_gives() {
        let bench = Bench::new(3);
        let seen = Mutex::new(vec![]);
        let first =
            Features::open_or_compute(Some(&bench.cache()), &bench.backbone, SIZE, &bench.items, &|done, of| {
                seen.lock().unwrap().push((done, of));
            });
        let first = first.unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
        assert_eq!((first.computed(), first.len(), first.shape()), (3, 3, [4, 4, 152]));
        let second = bench.open(SIZE);
        assert_eq!((second.computed(), second.len(), second.warnings().len()), (0, 3, 0));
        for (i, path) in bench.items.iter().enumerate() {
            let picture = decode_bytes(path, &fs::read(path).unwrap()).unwrap();
            let x = preprocess(&picture, SIZE, bench.backbone.mean(), bench.backbone.std());
            let want = bench.backbone.forward(&Tensor::from_slice([1, SIZE, SIZE, 3], &x)).unwrap();
            assert!(want.data().iter().any(|&v| v != 0.0));
            assert_eq!(first.get(i), want.data());
            assert_eq!(second.get(i), want.data());
        }
        assert_eq!(all(&bench.uncached()), all(&first));
        assert_eq!(bench.uncached().computed(), 3);
    }

    #[test]
    fn a_changed_picture_size_or_backbone_is_a_new_entry() {
        let bench = Bench::new(3);
        let before = all(&bench.open(SIZE));
        picture(&bench.items[1], 77);
        let after = bench.open(SIZE);
        assert_eq!(after.computed(), 1);
        let after = all(&after);
        assert_eq!([0, 1, 2].map(|i| before[i] == after[i]), [true, false, true]);
        // A renamed picture is the same picture.
        fs::rename(&bench.items[0], bench.folder.path().join("0.tmp")).unwrap();
        fs::copy(&bench.items[2], &bench.items[0]).unwrap();
        let copied = bench.open(SIZE);
        assert_eq!((copied.computed(), copied.get(0)), (0, copied.get(2)));

        picture(&bench.items[0], 78);
        assert_eq!(bench.open(SIZE).computed(), 1);

        let larger = bench.open(SIZE + 16);
        assert_eq!((larger.computed(), larger.shape()), (3, [6, 6, 152]));
        // The same values in a file of other bytes are the same weights; one value more or less makes others.
        let weights = include_bytes!("../assets/backbone/efficientnet-lite0.safetensors").to_vec();
        let mut changed = weights.clone();
        let tensor =
            safetensors::SafeTensors::deserialize(&weights).unwrap().tensor("_bn0.bias").unwrap().data().as_ptr();
        changed[tensor as usize - weights.as_ptr() as usize] ^= 1;
        for (bytes, computed) in [(weights, 0), (changed, 3)] {
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let meta = [("note".to_owned(), "again".to_owned())].into();
            let path = bench.folder.path().join("again.safetensors");
            fs::write(&path, safetensors::serialize(file.iter(), Some(meta)).unwrap()).unwrap();
            let again = Backbone::load(crate::backbone::Network::Lite0, &path).unwrap();
            let cache = bench.cache();
            let other = Features::open_or_compute(Some(&cache), &again, SIZE, &bench.items, &|_, _| {}).unwrap();
            assert_eq!(other.computed(), computed);
        }
    }

    #[test]
    fn damaged_records_are_computed_again_and_reported() {
        let bench = Bench::new(4);
        let want = all(&bench.open(SIZE));
        let records = bench.records();
        assert_eq!(records.len(), 4);
        let whole = fs::read(&records[0]).unwrap();
        // Cut short; empty; one bit of a value; the record of another picture.
        fs::write(&records[0], &whole[..whole.len() - 4]).unwrap();
        fs::write(&records[1], b"").unwrap();
        let mut flipped = fs::read(&records[2]).unwrap();
        flipped[HEADER + 1001] ^= 4;
        fs::write(&records[2], flipped).unwrap();
        fs::write(&records[3], whole).unwrap();
        let mended = bench.open(SIZE);
        assert_eq!((mended.computed(), all(&mended)), (4, want));
        let mut warnings = mended.warnings().to_vec();
        warnings.sort();
        let words = ["bytes instead of", "", "checksum", "checksum"];
        for ((warning, record), word) in warnings.iter().zip(&records).zip(words) {
            assert!(warning.starts_with(&record.display().to_string()) && warning.contains(word), "{warning}");
        }
        let after = bench.open(SIZE);
        assert_eq!((after.computed(), after.warnings().len()), (0, 0));
    }

    #[test]
    fn what_a_killed_writer_left_is_not_used() {
        let bench = Bench::new(2);
        let want = all(&bench.open(SIZE));
        let record = bench.records().remove(0);
        let whole = fs::read(&record).unwrap();
        fs::remove_file(&record).unwrap();
        let name = record.file_name().unwrap().to_str().unwrap();
        fs::write(record.with_file_name(format!(".{name}.abc123.tmp")), &whole[..whole.len() / 2]).unwrap();
        let mended = bench.open(SIZE);
        assert_eq!((mended.computed(), mended.warnings().len()), (1, 0));
        assert_eq!(all(&mended), want);
    }

    #[test]
    fn the_bits_do_not_depend_on_threads_and_writers_may_meet() {
        let bench = Bench::new(6);
        let want = bench.uncached();
        let indices = [4, 0, 5, 3];
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| bench.uncached());
            assert_eq!(all(&got), all(&want), "{threads} threads");
            let mean = pool.install(|| got.mean_square(&indices));
            assert_eq!(mean.to_bits(), want.mean_square(&indices).to_bits());
        }
        let found: Vec<_> = std::thread::scope(|scope| {
            let run = || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
                all(&pool.install(|| bench.open(SIZE)))
            };
            [(); 3].map(|()| scope.spawn(run)).map(|t| t.join().unwrap()).into()
        });
        assert!(found.iter().all(|f| *f == all(&want)));
        assert_eq!((bench.open(SIZE).computed(), bench.records().len()), (0, 6));
    }

    #[test]
    fn the_mean_square_is_that_of_the_pictures_asked_for() {
        let bench = Bench::new(3);
        let features = bench.open(SIZE);
        let values = [2, 0].map(|i| features.get(i)).concat();
        let want = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((features.mean_square(&[2, 0]) - want).abs() <= 1e-12 * want);
        assert!(features.mean_square(&[]).is_nan());
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_says_what_to_do() {
        let bench = Bench::new(2);
        let open = |cache: &Path, size: usize, items: &[PathBuf]| {
            Features::open_or_compute(Some(cache), &bench.backbone, size, items, &|_, _| {}).err().expect("refused")
        };
        assert!(matches!(open(&bench.cache(), 33, &bench.items), Error::Config { .. }));
        let gone = [bench.folder.path().join("gone.png")];
        assert!(matches!(open(&bench.cache(), SIZE, &gone), Error::Io { path, .. } if path == gone[0]));
        let text = [bench.folder.path().join("text.png")];
        fs::write(&text[0], "no picture").unwrap();
        assert!(matches!(open(&bench.cache(), SIZE, &text), Error::Data { path, .. } if path == text[0]));
        // A file where the cache folder should be.
        let error = open(&text[0], SIZE, &bench.items);
        let Error::Io { action: "create", help, .. } = &error else { panic!("{error:?}") };
        assert!(help.contains("another cache folder"), "{help}");
    }
}
