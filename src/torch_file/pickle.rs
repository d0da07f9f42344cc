//! The pickle machine: a pickle is a program for a stack machine, and this one runs the instructions that containers,
//! numbers, texts and tensors need. Two instructions of Python's name any function and call it; here they reach the closed
//! list of `objects` and nothing else, so no file can make anything happen.
//!
//! Protocols 0 to 5, as far as `torch.save` writes them (Python's `pickletools` documents the instructions).

use std::collections::HashMap;

use super::objects::{Fault, Global, MAX_NODES, Machine, Node, Ref, TORCH_TYPES, short};

impl<'a> Machine<'a> {
    /// Runs the pickle at the start of `bytes`: the number of its result, and how many bytes it took.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn run(&mut self, bytes: &'a [u8]) -> Result<(Ref, usize), Fault> {
        let mut run = Run { machine: self, bytes, at: 0, stack: vec![], marks: vec![], memo: HashMap::new() };
        loop {
            let at = run.at;
            match run.step() {
                Ok(None) => {}
                Ok(Some(result)) => return Ok((result, run.at)),
                Err(fault) => return Err(format!("{fault} (byte {at} of its pickle)")),
            }
        }
    }
}

/// One pickle being run.
struct Run<'m, 'a> {
    machine: &'m mut Machine<'a>,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Ref>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Ref>,
}

impl<'a> Run<'_, 'a> {
    /// One instruction; the result if it was the last.
    fn step(&mut self) -> Result<Option<Ref>, Fault> {
        self.machine.charge(1)?;
        let [code] = self.take()?;
        match code {
            b'.' => return self.pop().map(Some),
            0x80 => {
                let [version] = self.take()?;
                if version > 5 {
                    return Err(format!("it is a pickle of protocol {version}"));
                }
            }
            0x95 => {
                self.take::<8>()?; // FRAME: how much follows, which we find out ourselves
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // POP takes a mark where that is on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.since_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::None)?,
            0x88 | 0x89 => self.push(Node::Bool)?,
            b'K' => {
                let [n] = self.take()?;
                self.push(Node::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.push(Node::Int(n.into()))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.push(Node::Int(n.into()))?;
            }
            0x8a => {
                let n = self.length::<1>()?;
                self.long(n)?;
            }
            0x8b => {
                let n = self.length::<4>()?;
                self.long(n)?;
            }
            b'I' => match self.line()? {
                "00" | "01" => self.push(Node::Bool)?,
                digits => self.decimal(digits)?,
            },
            b'L' => {
                let line = self.line()?;
                self.decimal(line.strip_suffix('L').unwrap_or(line))?;
            }
            b'F' => {
                let line = self.line()?;
                let x = line.parse().map_err(|_| format!("{} is not a number", short(line)))?;
                self.push(Node::Float(x))?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.take()?);
                self.push(Node::Float(x))?;
            }
            b'X' => {
                let n = self.length::<4>()?;
                self.text(n)?;
            }
            0x8c => {
                let n = self.length::<1>()?;
                self.text(n)?;
            }
            0x8d => {
                let n = self.length::<8>()?;
                self.text(n)?;
            }
            // Strings of Python 2: text if they can be.
            b'U' | b'T' => {
                let n = if code == b'U' { self.length::<1>()? } else { self.length::<4>()? };
                let bytes = self.slice(n)?;
                self.push(str::from_utf8(bytes).map_or(Node::Bytes(bytes), Node::Str))?;
            }
            b'C' | b'B' | 0x8e => {
                let n = match code {
                    b'C' => self.length::<1>()?,
                    b'B' => self.length::<4>()?,
                    _ => self.length::<8>()?,
                };
                let bytes = self.slice(n)?;
                self.push(Node::Bytes(bytes))?;
            }
            b']' => self.push(Node::List(vec![]))?,
            b')' => self.push(Node::Tuple(vec![]))?,
            b'}' => self.push(Node::Dict(vec![]))?,
            b'l' => {
                let items = self.since_mark()?;
                self.push(Node::List(items))?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items))?;
            }
            b'd' => {
                let entries = pairs_of(&self.since_mark()?)?;
                self.push(Node::Dict(entries))?;
            }
            0x85..=0x87 => {
                let mut items = (0x84..code).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Node::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![(key, value)])?;
            }
            b'u' => {
                let entries = pairs_of(&self.since_mark()?)?;
                self.extend_dict(entries)?;
            }
            b'h' | b'j' | b'g' => {
                let key = self.memo_key(code == b'g', code == b'h')?;
                let found = *self.memo.get(&key).ok_or_else(|| format!("object {key} was never made"))?;
                self.stack.push(found);
            }
            b'q' | b'r' | b'p' => {
                let key = self.memo_key(code == b'p', code == b'q')?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.machine.node(module), self.machine.node(name)) {
                    (&Node::Str(module), &Node::Str(name)) => self.global(module, name)?,
                    _ => return Err("it names a function by what is no text".into()),
                }
            }
            // REDUCE and NEWOBJ: a call, whether of a function or of a class.
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = self.machine.call(function, arguments)?;
                self.stack.push(result);
            }
            b'b' => {
                let (state, of) = (self.pop()?, self.top()?);
                self.build(of, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.machine.storage(id)?;
                self.stack.push(storage);
            }
            _ => return Err(format!("it uses the pickle instruction 0x{code:02x}, which no file of tensors needs")),
        }
        Ok(None)
    }

    fn slice(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let bytes = self.bytes;
        let piece = self.at.checked_add(n).and_then(|end| bytes.get(self.at..end)).ok_or("it ends in mid-pickle")?;
        self.at += n;
        Ok(piece)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.slice(N)?.try_into().expect("a slice of N bytes"))
    }

    /// An unsigned little-endian number of `N` bytes that says how many bytes follow.
    fn length<const N: usize>(&mut self) -> Result<usize, Fault> {
        let n = self.take::<N>()?.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(n).map_err(|_| "it ends in mid-pickle".into())
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').ok_or("it ends in mid-pickle")?;
        let line = self.slice(n + 1)?;
        let line = &line[..n];
        str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|_| "a line is not text".into())
    }

    fn decimal(&mut self, digits: &str) -> Result<(), Fault> {
        let n =
            digits.parse().map_err(|_| format!("{} is not a number that a file of tensors needs", short(digits)))?;
        self.push(Node::Int(n))
    }

    /// A two's complement number of `n` bytes.
    fn long(&mut self, n: usize) -> Result<(), Fault> {
        let bytes = self.slice(n)?;
        if n > 16 {
            return Err(format!("it holds a number of {n} bytes"));
        }
        let fill = if bytes.last().is_some_and(|b| *b >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide[..n].copy_from_slice(bytes);
        self.push(Node::Int(i128::from_le_bytes(wide)))
    }

    fn text(&mut self, n: usize) -> Result<(), Fault> {
        let text = str::from_utf8(self.slice(n)?).map_err(|_| "a text is not UTF-8")?;
        self.push(Node::Str(text))
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), Fault> {
        let at = self.machine.add(node)?;
        self.stack.push(at);
        Ok(())
    }

    /// The top of the stack, above the last mark.
    fn top(&self) -> Result<Ref, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "it takes from an empty stack".into())
    }

    fn pop(&mut self) -> Result<Ref, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Result<Vec<Ref>, Fault> {
        let mark = self.marks.pop().ok_or("it goes back to a mark that is not there")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn memo_key(&mut self, decimal: bool, one_byte: bool) -> Result<u64, Fault> {
        if decimal {
            let line = self.line()?;
            return line.parse().map_err(|_| format!("{} is not the number of an object", short(line)));
        }
        Ok(if one_byte { self.length::<1>()? } else { self.length::<4>()? } as u64)
    }

    fn remember(&mut self, key: u64) -> Result<(), Fault> {
        if self.memo.len() >= MAX_NODES {
            return Err(format!("it remembers more than {MAX_NODES} objects"));
        }
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<(), Fault> {
        if module == "torch" && TORCH_TYPES.contains(&name) {
            return self.push(Node::Str(name));
        }
        match Global::find(module, name) {
            Some(global) => self.push(Node::Global(global)),
            None => Err(format!(
                "it names {}.{}, which is neither a tensor nor a plain container",
                short(module),
                short(name)
            )),
        }
    }

    fn extend_list(&mut self, items: Vec<Ref>) -> Result<(), Fault> {
        let to = self.top()?;
        match &mut self.machine.nodes[to as usize] {
            Node::List(list) => list.extend(items),
            other => return Err(format!("it appends to {}", other.kind())),
        }
        Ok(())
    }

    fn extend_dict(&mut self, entries: Vec<(Ref, Ref)>) -> Result<(), Fault> {
        let to = self.top()?;
        match &mut self.machine.nodes[to as usize] {
            Node::Dict(dict) => dict.extend(entries),
            other => return Err(format!("it sets items of {}", other.kind())),
        }
        Ok(())
    }

    /// BUILD: attributes of a dictionary, which are of no use here, and the byte order of a NumPy type.
    fn build(&mut self, of: Ref, state: Ref) -> Result<(), Fault> {
        let second = self.machine.sequence(state).and_then(|items| items.get(1).copied());
        let big = second.is_some_and(|at| matches!(self.machine.node(at), Node::Str(">")));
        match &mut self.machine.nodes[of as usize] {
            Node::Dict(_) => {}
            Node::NumpyType(_, order) => *order = big,
            other => return Err(format!("it sets attributes of {}", other.kind())),
        }
        Ok(())
    }
}

fn pairs_of(items: &[Ref]) -> Result<Vec<(Ref, Ref)>, Fault> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a key has no value".into()),
    }
}
