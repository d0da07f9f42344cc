//! Files of PyTorch's `torch.save`: tensors and plain containers are read, nothing is ever run.
//!
//! | written by | a file is |
//! |---|---|
//! | PyTorch 1.6 and later | a zip archive: `NAME/data.pkl`, each storage as `NAME/data/KEY`, all uncompressed |
//! | earlier | pickles in a row (magic number, protocol, machine, contents, keys), then length and values of each storage |
//!
//! | file here | holds |
//! |---|---|
//! | `objects` | what a file may be made of, and the closed list of what it may name |
//! | `pickle` | the machine that builds it, instruction by instruction |
//! | `tensor` | strided windows on storages |
//!
//! A file can only be refused: with what it holds and is not allowed to, or where it is damaged. Memory grows with the
//! length of the file, time too. Source: `torch/serialization.py`, as facts.

mod objects;
mod pickle;
mod tensor;

use std::collections::HashMap;
use std::io::{self, Cursor};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use objects::{Fault, Machine, Node, Ref, Storage, short};
use tensor::width;

pub use tensor::TorchTensor;

/// First pickle of a file of before 1.6.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// How that pickle begins: protocol 2, a number of ten bytes.
const STREAM: &[u8] = &[0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c];
const ZIP: &[u8] = b"PK\x03\x04";
/// Its version, the second pickle.
const PROTOCOL: i128 = 1001;

const HELP: &str = "load it where it was written and save the tensors alone, torch.save(model.state_dict(), \
                    \"weights.pth\"), or copy it again if it is damaged";

/// An open file. Strings and storages are pieces of its bytes.
pub struct TorchFile<'a> {
    machine: Machine<'a>,
    root: Ref,
    storages: Vec<&'a [u8]>,
    big_endian: bool,
}

/// An object of a file.
#[derive(Clone, Copy)]
pub struct Item<'f> {
    file: &'f TorchFile<'f>,
    at: Ref,
}

impl<'a> TorchFile<'a> {
    /// Whether bytes begin as such a file does.
    pub fn is(bytes: &[u8]) -> bool {
        bytes.starts_with(ZIP) || bytes.starts_with(STREAM)
    }

    /// Opens the bytes of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Model`] naming what it holds beside tensors and plain containers, or where it is damaged.
    pub fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        let parsed = if bytes.starts_with(ZIP) { Self::archive(bytes) } else { Self::stream(bytes) };
        parsed.map_err(|fault| Error::model(path, format!("is a PyTorch file that cannot be used: {fault}"), HELP))
    }

    fn archive(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("its zip archive is damaged: {e}"))?;
        let names = zip.file_names().filter_map(|name| name.ok()).filter(|name| name.ends_with("/data.pkl"));
        let pickles: Vec<String> = names.map(|name| name.into_owned()).collect();
        let [pickle] = &pickles[..] else {
            return Err(format!("its zip archive holds {} files called data.pkl, not one", pickles.len()));
        };
        let folder = pickle.strip_suffix("data.pkl").expect("it ends so").to_owned();
        let mut machine = Machine::default();
        let (root, _) = machine.run(entry(&mut zip, bytes, pickle)?)?;
        let order = format!("{folder}byteorder");
        let big_endian = match zip.index_for_name(&order) {
            None => false,
            Some(_) => match entry(&mut zip, bytes, &order)? {
                b"little" => false,
                b"big" => true,
                other => return Err(format!("its byte order is {:?}", String::from_utf8_lossy(other))),
            },
        };
        // Storages that share bytes would make much of a small file.
        let mut left = bytes.len();
        let mut storages = vec![];
        for storage in &machine.storages {
            let name = format!("{folder}data/{}", short(storage.key));
            let values = entry(&mut zip, bytes, &name)?;
            left = left.checked_sub(values.len()).ok_or("its storages overlap")?;
            storages.push(fitted(values, storage)?);
        }
        Ok(TorchFile { machine, root, storages, big_endian })
    }

    fn stream(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut machine = Machine::default();
        let mut rest = bytes;
        let mut next = |machine: &mut Machine<'a>| {
            let (result, taken) = machine.run(rest)?;
            rest = &rest[taken..];
            Ok::<_, Fault>(result)
        };
        let (magic, protocol) = (next(&mut machine)?, next(&mut machine)?);
        for (at, wanted) in [(magic, MAGIC), (protocol, PROTOCOL)] {
            if !matches!(machine.nodes[at as usize], Node::Int(n) if n == wanted) {
                return Err("it does not begin as torch.save begins a file".into());
            }
        }
        // Between them, the machine it was written on.
        let (_, root, keys) = (next(&mut machine)?, next(&mut machine)?, next(&mut machine)?);
        let keys = machine.sequence(keys).ok_or("its list of storages is none")?;
        let by_key: HashMap<&str, usize> = machine.storages.iter().enumerate().map(|(i, s)| (s.key, i)).collect();
        let mut storages: Vec<Option<&[u8]>> = vec![None; machine.storages.len()];
        for &key in keys {
            let &Node::Str(key) = &machine.nodes[key as usize] else { return Err("a storage has no name".into()) };
            let &at = by_key.get(key).ok_or_else(|| format!("storage {} belongs to no tensor", short(key)))?;
            let storage = &machine.storages[at];
            let cut = || format!("it ends before the values of storage {}", short(key));
            let (count, values) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
            if u64::from_le_bytes(*count) != storage.numel as u64 {
                let (found, wanted) = (u64::from_le_bytes(*count), storage.numel);
                return Err(format!("storage {} has {found} values, expected {wanted}", short(key)));
            }
            let length = storage.numel.checked_mul(width(storage.dtype)).ok_or_else(cut)?;
            let (values, after) = values.split_at_checked(length).ok_or_else(cut)?;
            (storages[at], rest) = (Some(values), after);
        }
        let found = |(storage, values): (&Storage, Option<_>)| {
            values.ok_or_else(|| format!("it lacks the values of storage {}", short(storage.key)))
        };
        let storages = machine.storages.iter().zip(storages).map(found).collect::<Result<_, _>>()?;
        // Values are little-endian in these files, whatever machine wrote them.
        Ok(TorchFile { machine, root, storages, big_endian: false })
    }

    /// What was saved.
    pub fn root(&self) -> Item<'_> {
        Item { file: self, at: self.root }
    }
}

/// A file of the archive, its checksum verified: it must be stored as it is.
fn entry<'a>(zip: &mut ZipArchive<Cursor<&'a [u8]>>, bytes: &'a [u8], name: &str) -> Result<&'a [u8], Fault> {
    let damaged = |e: &dyn std::fmt::Display| format!("{name} in its zip archive is damaged or missing: {e}");
    let mut file = zip.by_name(name).map_err(|e| damaged(&e))?;
    if file.compression() != CompressionMethod::Stored || file.compressed_size() != file.size() {
        return Err(format!("{name} in its zip archive is compressed, which torch.save never does"));
    }
    let start = file.data_start().ok_or_else(|| damaged(&"it has no place"))?;
    let end = start.checked_add(file.size());
    let place = end.and_then(|end| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?));
    let data = place.and_then(|place| bytes.get(place)).ok_or_else(|| damaged(&"it ends early"))?;
    io::copy(&mut file, &mut io::sink()).map_err(|e| damaged(&e))?;
    Ok(data)
}

/// The values of a storage, all of them and nothing else.
fn fitted<'a>(values: &'a [u8], storage: &Storage) -> Result<&'a [u8], Fault> {
    if storage.numel.checked_mul(width(storage.dtype)) == Some(values.len()) {
        return Ok(values);
    }
    let (key, numel) = (short(storage.key), storage.numel);
    Err(format!("storage {key} has {} bytes, expected {numel} values of {:?}", values.len(), storage.dtype))
}

impl<'f> Item<'f> {
    fn node(self) -> &'f Node<'f> {
        &self.file.machine.nodes[self.at as usize]
    }

    /// What it is, in words.
    pub fn kind(self) -> &'static str {
        self.node().kind()
    }

    /// The entries of a dictionary, in order; none for anything else.
    pub fn entries(self) -> impl Iterator<Item = (Item<'f>, Item<'f>)> {
        let entries: &[(Ref, Ref)] = if let Node::Dict(entries) = self.node() { entries } else { &[] };
        entries.iter().map(move |&(key, value)| (Item { at: key, ..self }, Item { at: value, ..self }))
    }

    /// The value of a dictionary's entry; of the last one, if a key comes twice.
    pub fn get(self, key: &str) -> Option<Item<'f>> {
        self.entries().filter(|(k, _)| k.text() == Some(key)).last().map(|(_, value)| value)
    }

    /// The items of a list or tuple; none for anything else.
    pub fn items(self) -> impl ExactSizeIterator<Item = Item<'f>> {
        let items = self.file.machine.sequence(self.at).unwrap_or_default();
        items.iter().map(move |&at| Item { at, ..self })
    }

    /// A text.
    pub fn text(self) -> Option<&'f str> {
        if let Node::Str(text) = self.node() { Some(text) } else { None }
    }

    /// A whole number.
    pub fn integer(self) -> Option<i64> {
        if let Node::Int(n) = self.node() { (*n).try_into().ok() } else { None }
    }

    /// A number.
    pub fn number(self) -> Option<f64> {
        match self.node() {
            Node::Float(x) => Some(*x),
            _ => self.integer().map(|n| n as f64),
        }
    }

    /// A tensor.
    pub fn tensor(self) -> Option<&'f TorchTensor> {
        if let Node::Tensor(tensor) = self.node() { Some(tensor) } else { None }
    }

    /// All values of a tensor in row-major order, rounded to f32.
    ///
    /// # Errors
    /// What is wrong with it: no tensor, of a type that weights are not made of, or one that repeats values.
    pub fn values(self) -> Result<Vec<f32>, String> {
        let tensor = self.tensor().ok_or_else(|| format!("it is {}", self.kind()))?;
        tensor.values(self.file.storages[tensor.storage], self.file.big_endian)
    }
}

#[cfg(test)]
mod tests;
