//! What a file may be made of, and the few calls that make it.
//!
//! Every object is a node of one vector and holds the numbers of other nodes: nothing is ever copied or followed by
//! recursion, whatever a file shares, nests or ties into a ring. A function is named from a closed list ([`Global`]), and a
//! call is a `match`. What is held grows with the length of the file alone, up to limits far above any real one.

use std::collections::HashMap;

use safetensors::Dtype;

use super::tensor::{MAX_AXES, StorageId, TorchTensor};

/// Instructions of all the pickles in a file.
const MAX_STEPS: usize = 1 << 23;
/// Objects of all the pickles in a file; a checkpoint of a thousand tensors has some thirty thousand.
pub(super) const MAX_NODES: usize = 1 << 20;

/// More than any function in the list takes.
const MAX_ARGUMENTS: usize = 8;

/// Number of a node.
pub(super) type Ref = u32;

/// An object. Strings are pieces of the file.
#[derive(Debug)]
pub(super) enum Node<'a> {
    None,
    Bool,
    /// Up to 16 bytes; longer ones are refused.
    Int(i128),
    Float(f64),
    Str(&'a str),
    Bytes(&'a [u8]),
    /// Bytes that were spelt as text.
    Encoded(Vec<u8>),
    List(Vec<Ref>),
    Tuple(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    Storage(StorageId),
    Tensor(Box<TorchTensor>),
    /// A NumPy type such as `f8`, and whether its numbers are big-endian.
    NumpyType(&'a str, bool),
}

/// All that a file may name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    /// `collections.OrderedDict`, and `easydict.EasyDict`, a dictionary that configurations are kept in.
    Dict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`.
    Parameter,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
    /// `torch.Size`.
    Size,
    /// `torch.device`.
    Device,
    /// `numpy.dtype`.
    NumpyType,
    /// `numpy.core.multiarray.scalar`: a single number.
    NumpyScalar,
    /// `_codecs.encode`: how protocol 2 spells bytes.
    Encode,
}

impl Global {
    pub fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") | ("easydict", "EasyDict") => Global::Dict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Tensor,
            ("torch._utils", "_rebuild_parameter") => Global::Parameter,
            ("torch", "Size") => Global::Size,
            ("torch", "device") => Global::Device,
            ("numpy", "dtype") => Global::NumpyType,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::NumpyScalar,
            ("_codecs", "encode") => Global::Encode,
            ("torch" | "torch.cuda", storage) => Global::Storage(match storage {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::BOOL,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// Types that appear in a file as a mere name, and stay one.
pub(super) const TORCH_TYPES: [&str; 10] =
    ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"];

/// A storage that a pickle speaks of; its values lie elsewhere in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    pub numel: usize,
}

/// What is wrong with a file.
pub(super) type Fault = String;

/// Everything the pickles of a file have built.
#[derive(Default)]
pub(super) struct Machine<'a> {
    pub nodes: Vec<Node<'a>>,
    /// In the order of their first mention.
    pub storages: Vec<Storage<'a>>,
    by_key: HashMap<&'a str, StorageId>,
    steps: usize,
}

impl<'a> Machine<'a> {
    pub fn add(&mut self, node: Node<'a>) -> Result<Ref, Fault> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("it holds more than {MAX_NODES} objects"));
        }
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as Ref)
    }

    /// Counts the work of copying `n` things among the steps: copies of copies must not add up.
    pub fn charge(&mut self, n: usize) -> Result<(), Fault> {
        self.steps = self.steps.saturating_add(n);
        if self.steps > MAX_STEPS { Err(format!("it takes more than {MAX_STEPS} steps to read")) } else { Ok(()) }
    }

    pub fn node(&self, at: Ref) -> &Node<'a> {
        &self.nodes[at as usize]
    }

    /// The items of a tuple, or of a list.
    pub fn sequence(&self, at: Ref) -> Option<&[Ref]> {
        match self.node(at) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    fn size(&self, at: Ref) -> Result<usize, Fault> {
        match self.node(at) {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("{n} is not a size")),
            other => Err(format!("a size is {}", other.kind())),
        }
    }

    fn sizes(&self, at: Ref) -> Result<Vec<usize>, Fault> {
        let items = self.sequence(at).ok_or_else(|| format!("a shape is {}", self.node(at).kind()))?;
        if items.len() > MAX_AXES {
            return Err(format!("a shape has {} axes", items.len()));
        }
        items.iter().map(|&item| self.size(item)).collect()
    }

    /// The storage that a persistent id speaks of: `('storage', type, key, device, values[, view])`.
    pub fn storage(&mut self, id: Ref) -> Result<Ref, Fault> {
        const SHAPE: &str = "a persistent id is not that of a storage";
        let Some(&[tag, dtype, key, _, numel, ref more @ ..]) = self.sequence(id) else { return Err(SHAPE.into()) };
        let view = more.first().is_some_and(|&view| !matches!(self.node(view), Node::None));
        let (Node::Str("storage"), Node::Global(Global::Storage(dtype)), &Node::Str(key)) =
            (self.node(tag), self.node(dtype), self.node(key))
        else {
            return Err(SHAPE.into());
        };
        if view {
            return Err("it holds a view of a storage, as PyTorch wrote before 0.4".into());
        }
        let storage = Storage { key, dtype: *dtype, numel: self.size(numel)? };
        let found = match self.by_key.get(key) {
            Some(&found) if self.storages[found] == storage => found,
            Some(_) => return Err(format!("storage {} is spoken of in two ways", short(key))),
            None => {
                self.storages.push(storage);
                self.by_key.insert(key, self.storages.len() - 1);
                self.storages.len() - 1
            }
        };
        self.add(Node::Storage(found))
    }

    /// The tensor of `(storage, offset, shape, strides, ..)`.
    fn tensor(&self, arguments: &[Ref]) -> Result<TorchTensor, Fault> {
        let &[storage, offset, shape, strides, ..] = arguments else {
            return Err(format!("a tensor is made of {} parts", arguments.len()));
        };
        let Node::Storage(storage) = *self.node(storage) else {
            return Err(format!("the storage of a tensor is {}", self.node(storage).kind()));
        };
        let Storage { dtype, numel, .. } = self.storages[storage];
        let (offset, shape, strides) = (self.size(offset)?, self.sizes(shape)?, self.sizes(strides)?);
        TorchTensor::new(storage, dtype, numel, offset, shape, strides)
    }

    /// What calling `function` with a tuple of arguments gives.
    pub fn call(&mut self, function: Ref, arguments: Ref) -> Result<Ref, Fault> {
        let Node::Global(function) = *self.node(function) else {
            return Err(format!("it calls {}", self.node(function).kind()));
        };
        let arguments = match self.node(arguments) {
            Node::Tuple(arguments) => arguments[..arguments.len().min(MAX_ARGUMENTS)].to_vec(),
            other => return Err(format!("it calls with {}", other.kind())),
        };
        match (function, &arguments[..]) {
            (Global::Tensor, arguments) => {
                let tensor = self.tensor(arguments)?;
                self.add(Node::Tensor(Box::new(tensor)))
            }
            (Global::Parameter, &[tensor, ..]) => Ok(tensor),
            (Global::Dict, []) => self.add(Node::Dict(vec![])),
            (Global::Dict, &[pairs]) => {
                let pairs = self.pairs(pairs)?;
                self.charge(pairs.len())?;
                self.add(Node::Dict(pairs))
            }
            (Global::Size, &[sizes]) => {
                self.sizes(sizes)?;
                Ok(sizes)
            }
            (Global::Device, &[name, ..]) => Ok(name),
            (Global::Encode, &[text, ..]) => {
                let &Node::Str(text) = self.node(text) else { return Err("it encodes what is no text".into()) };
                self.charge(text.len())?;
                let byte = |c: char| u8::try_from(u32::from(c)).map_err(|_| format!("{c:?} is not a byte"));
                let bytes = text.chars().map(byte).collect::<Result<_, _>>()?;
                self.add(Node::Encoded(bytes))
            }
            (Global::NumpyType, &[code, ..]) => {
                let &Node::Str(code) = self.node(code) else { return Err("a NumPy type has no name".into()) };
                self.add(Node::NumpyType(code, false))
            }
            (Global::NumpyScalar, &[dtype, value]) => {
                let number = self.numpy_scalar(dtype, value)?;
                self.add(number)
            }
            _ => Err(format!("it calls {function:?} with {} arguments", arguments.len())),
        }
    }

    /// Keys and values of a dictionary, or of a list of pairs.
    fn pairs(&self, at: Ref) -> Result<Vec<(Ref, Ref)>, Fault> {
        if let Node::Dict(entries) = self.node(at) {
            return Ok(entries.clone());
        }
        let pair = |&item: &Ref| match self.sequence(item) {
            Some(&[key, value]) => Ok((key, value)),
            _ => Err("a dictionary is not made of pairs".to_owned()),
        };
        self.sequence(at).ok_or("a dictionary is not made of pairs")?.iter().map(pair).collect()
    }

    fn numpy_scalar(&self, dtype: Ref, value: Ref) -> Result<Node<'a>, Fault> {
        let &Node::NumpyType(code, big) = self.node(dtype) else { return Err("a NumPy number has no type".into()) };
        let mut bytes = match self.node(value) {
            Node::Bytes(bytes) => bytes.iter().copied().take(16).collect(),
            Node::Encoded(bytes) => bytes.iter().copied().take(16).collect::<Vec<_>>(),
            other => return Err(format!("a NumPy number is {}", other.kind())),
        };
        if big {
            bytes.reverse();
        }
        Ok(match (code, &bytes[..]) {
            ("f8", &[a, b, c, d, e, f, g, h]) => Node::Float(f64::from_le_bytes([a, b, c, d, e, f, g, h])),
            ("f4", &[a, b, c, d]) => Node::Float(f32::from_le_bytes([a, b, c, d]).into()),
            ("i8", &[a, b, c, d, e, f, g, h]) => Node::Int(i64::from_le_bytes([a, b, c, d, e, f, g, h]).into()),
            ("i4", &[a, b, c, d]) => Node::Int(i32::from_le_bytes([a, b, c, d]).into()),
            ("b1", [_]) => Node::Bool,
            _ => return Err(format!("a NumPy number is of type {:?}", short(code))),
        })
    }
}

impl Node<'_> {
    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Node::None => "nothing",
            Node::Bool => "a truth value",
            Node::Int(_) | Node::Float(_) => "a number",
            Node::Str(_) => "a text",
            Node::Bytes(_) | Node::Encoded(_) => "bytes",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Dict(_) => "a dictionary",
            Node::Global(_) => "a function",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
            Node::NumpyType(..) => "a type",
        }
    }
}

/// The start of a text of the file, for messages.
pub(super) fn short(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
