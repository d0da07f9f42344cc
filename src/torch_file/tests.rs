//! Files that PyTorch wrote, files made by hand to do harm, and files damaged at random.

use super::*;
use safetensors::Dtype;

/// The same contents in both formats, by PyTorch (`fixtures/reference/torch_files.py`).
const ZIP_FILE: &[u8] = include_bytes!("../../fixtures/torch_zip.pth");
const STREAM_FILE: &[u8] = include_bytes!("../../fixtures/torch_stream.pth");

fn open(bytes: &[u8]) -> Result<TorchFile<'_>> {
    TorchFile::parse(Path::new("w.pth"), bytes)
}

/// The reason a file is refused.
fn refusal(bytes: &[u8]) -> String {
    let error = open(bytes).err().expect("refused");
    assert!(matches!(error, Error::Model { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.len() < 1000 && text.contains("w.pth") && text.contains("torch.save"), "{text}");
    text
}

/// A stream file around the pickle of its contents, without any storage.
fn stream(contents: &[u8]) -> Vec<u8> {
    let number = |n: i64| [&[0x80, 2, 0x8a, 8][..], &n.to_le_bytes(), b"."].concat();
    let magic = [&[0x80, 2, 0x8a, 10][..], &MAGIC.to_le_bytes()[..10], b"."].concat();
    [&magic[..], &number(1001), b"\x80\x02}.", b"\x80\x02", contents, b"\x80\x02]."].concat()
}

#[test]
fn both_formats_are_read_as_pytorch_wrote_them() {
    for bytes in [ZIP_FILE, STREAM_FILE] {
        assert!(TorchFile::is(bytes));
        let file = open(bytes).unwrap();
        let root = file.root();
        let values = |name: &str| root.get(name).unwrap().values().unwrap();
        for (name, dtype) in [
            ("float64", Dtype::F64),
            ("float32", Dtype::F32),
            ("float16", Dtype::F16),
            ("bfloat16", Dtype::BF16),
            ("int64", Dtype::I64),
            ("int32", Dtype::I32),
        ] {
            let item = root.get("types").unwrap().get(name).unwrap();
            let tensor = item.tensor().unwrap();
            assert_eq!((tensor.dtype, &tensor.shape[..], tensor.numel()), (dtype, &[2, 3][..], 6));
            assert_eq!(item.values().unwrap(), [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], "{name}");
        }
        // [2, 3, 4] counting up; its axes turned to [4, 2, 3]; rows of its second half, every other column.
        assert_eq!(values("whole"), (0..24).map(|v| v as f32).collect::<Vec<_>>());
        let turned: Vec<f32> = (0..24).map(|i| ((i / 3 % 2) * 12 + i % 3 * 4 + i / 6) as f32).collect();
        assert_eq!(values("turned"), turned);
        assert_eq!(values("part"), [13.0, 15.0, 17.0, 19.0, 21.0, 23.0]);
        assert_eq!((values("scalar"), values("empty"), values("parameter")), (vec![2.5], vec![], vec![1.0, -1.0]));
        assert!(root.get("repeated").unwrap().values().unwrap_err().contains("repeats"));
        assert!(root.get("bytes").unwrap().values().unwrap_err().contains("U8"));
        assert!(root.get("list").unwrap().values().unwrap_err().contains("a list"));

        let names =
            |name: &str| -> Vec<&str> { root.get(name).unwrap().entries().filter_map(|e| e.0.text()).collect() };
        let layer = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
        assert_eq!(
            (names("layer"), names("ordered"), names("easy")),
            (layer.into(), vec!["b", "a"], vec!["name", "inner"])
        );
        assert_eq!(root.get("easy").and_then(|e| e.get("inner")?.get("depth")?.integer()), Some(11));
        let list: Vec<Item> = root.get("list").unwrap().items().collect();
        let numbers: Vec<f64> = list.iter().filter_map(|i| i.number()).collect();
        assert_eq!(numbers, [0.0, 255.0, 65535.0, -1.0, 2_147_483_648.0, -1_099_511_627_776.0, 2.5]);
        assert_eq!((list.len(), list[9].text(), list[7].kind()), (11, Some("café"), "nothing"));
        let tuples: Vec<usize> = root.get("tuple").unwrap().items().map(|t| t.items().len()).collect();
        assert_eq!(tuples, [0, 1, 2, 3, 4]);
        let size: Vec<_> = root.get("size").unwrap().items().map(Item::integer).collect();
        assert_eq!((size, root.get("dtype").unwrap().text()), (vec![Some(4), Some(5)], Some("float16")));
        assert_eq!(
            (root.get("device").unwrap().text(), root.get("numpy").unwrap().number()),
            (Some("cpu"), Some(0.993))
        );
    }
}

/// A big-endian machine writes `big`, and its own values.
#[test]
fn the_byte_order_is_that_of_the_file() {
    let archive = |order: &[u8], value: [u8; 4]| {
        let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
        let stored = zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let pickle =
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000\
                       X\x03\0\0\0cpuK\x01tQK\0K\x01\x85K\x01\x85\x89}tR.";
        for (name, bytes) in [("a/data.pkl", &pickle[..]), ("a/byteorder", order), ("a/data/0", &value)] {
            zip.start_file(name, stored).unwrap();
            io::Write::write_all(&mut zip, bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    };
    for bytes in [archive(b"little", 1.5f32.to_le_bytes()), archive(b"big", 1.5f32.to_be_bytes())] {
        assert_eq!(open(&bytes).unwrap().root().values().unwrap(), [1.5]);
    }
    assert!(refusal(&archive(b"middle", [0; 4])).contains("byte order"));
    // A value that changed on the way: the archive's checksum tells.
    let mut bytes = archive(b"little", 1.5f32.to_le_bytes());
    let at = bytes.windows(4).position(|w| w == 1.5f32.to_le_bytes()).unwrap();
    bytes[at] ^= 1;
    assert!(refusal(&bytes).contains("a/data/0 in its zip archive is damaged"));
}

#[test]
fn what_would_run_code_is_refused_by_name() {
    for (pickle, word) in [
        (&b"cposix\nsystem\nX\x02\0\0\0id\x85R."[..], "posix.system"),
        (b"c__builtin__\neval\nX\x01\0\0\x001\x85R.", "__builtin__.eval"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93.", "os.system"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch.nn.modules.container\nSequential\n)\x81.", "Sequential"),
        (b"(X\x01\0\0\0aios\nsystem\n.", "instruction 0x69"), // INST
        (b"\x82\x01.", "instruction 0x82"),                   // EXT1
        (b"K\x01)R.", "calls a number"),
        (b"ccollections\nOrderedDict\nK\x01R.", "calls with a number"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02K\x03tR.", "with 3 arguments"),
        (b"K\x01}b.", "sets attributes of a number"),
        (b"]K\x01K\x02s.", "sets items of a list"),
        (b"}K\x01a.", "appends to a dictionary"),
        (b"K\x01Q.", "persistent id"),
        (b"\x80\x09.", "protocol 9"),
    ] {
        let text = refusal(&stream(pickle));
        assert!(text.contains(word), "{text} should name {word}");
    }
    assert!(open(&stream(b"}.")).is_ok(), "the wrapping itself is fine");
}

#[test]
fn what_is_broken_is_refused_with_a_reason() {
    let long = [b"\x8b".as_slice(), &1_000_000u32.to_le_bytes(), &[0xff; 1_000_000], b"."].concat();
    for (pickle, word) in [
        (&b"."[..], "empty stack"),
        (b"0.", "empty stack"),
        (b"1.", "mark"),
        (b"t.", "mark"),
        (b"h\x05.", "object 5"),
        (b"(K\x01d.", "a key has no value"),
        (b"X\xff\xff\xff\x7fabc.", "mid-pickle"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", "mid-pickle"),
        (b"X\x01\0\0\0\xff.", "UTF-8"),
        (b"I12x\n.", "12x"),
        (b"c_codecs\nencode\nX\x02\0\0\0\xc4\x80\x85R.", "not a byte"),
        (&long, "1000000 bytes"),
    ] {
        let text = refusal(&stream(pickle));
        assert!(text.contains(word), "{text} should name {word}");
    }
    // A window that leaves its storage, in each of the ways.
    let tensor = |rest: &[u8]| {
        let head =
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu";
        refusal(&stream(&[head, rest, b"\x89}tR."].concat()))
    };
    assert!(tensor(b"K\x04tQK\x01K\x04\x85K\x01\x85").contains("leaves its storage of 4 values"));
    assert!(tensor(b"K\x04tQK\0K\x02\x85K\x04\x85").contains("leaves its storage"));
    assert!(tensor(b"K\x04tQK\0J\xff\xff\xff\xff\x85K\x01\x85").contains("not a size"));
    assert!(tensor(b"K\x04tQK\0K\x02\x85)").contains("1 sizes and 0 strides"));
    let huge =
        b"K\x04tQK\0(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ftK\0K\0\x86";
    assert!(tensor(huge).contains("leaves its storage"));
    assert!(tensor(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ftQK\0K\x04\x85K\x01\x85").contains("lacks the values"));
    assert!(refusal(b"PK\x03\x04 and nothing more").contains("zip archive"));
    assert!(refusal(b"\x80\x02}.\x80\x02}.").contains("does not begin as torch.save begins"));
}

/// Each would fill memory or take for ever if objects were copied or limits missing.
#[test]
fn bombs_do_not_go_off() {
    // A list of two of the list before, a hundred times over.
    let mut laughs = b"]q\x00".to_vec();
    for i in 0..100 {
        laughs.extend([b']', b'h', i, b'a', b'h', i, b'a', b'q', i + 1]);
    }
    laughs.push(b'.');
    let bytes = stream(&laughs);
    let file = open(&bytes).unwrap();
    assert_eq!(file.root().items().len(), 2);
    // Nested a hundred thousand deep, and a list that holds itself.
    let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], b".".to_vec()].concat();
    assert!(open(&stream(&deep)).is_ok());
    assert_eq!(open(&stream(b"]q\x00h\x00a.")).unwrap().root().items().next().unwrap().kind(), "a list");
    for (bomb, word) in [
        ([vec![b']'; 2_000_000], b".".to_vec()].concat(), "objects"),
        ([b"]".to_vec(), vec![b'2'; 9_000_000], b".".to_vec()].concat(), "steps"),
        // One long dictionary, made into others again and again.
        (
            [
                b"(".to_vec(),
                b"NN".repeat(100_000),
                b"dq\x00".to_vec(),
                b"ccollections\nOrderedDict\nh\x00\x85R0".repeat(1000),
                b"N.".to_vec(),
            ]
            .concat(),
            "steps",
        ),
        (
            [
                b"X\x40\x42\x0f\0".to_vec(),
                vec![b'a'; 1_000_000],
                b"q\x000".to_vec(),
                b"c_codecs\nencode\nh\x00\x85R0".repeat(1000),
                b"N.".to_vec(),
            ]
            .concat(),
            "steps",
        ),
    ] {
        let text = refusal(&stream(&bomb));
        assert!(text.contains(word), "{text}");
    }
}

/// A compressed archive, and one whose storages lie on one another.
#[test]
fn archives_hold_what_they_hold() {
    let mut packed = ZIP_FILE.to_vec();
    // The method of the first entry, in both of its headers.
    let central = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    packed[8] = 8;
    packed[central + 10] = 8;
    assert!(refusal(&packed).contains("zip archive"));
    let mut missing = ZIP_FILE.to_vec();
    let names: Vec<usize> = missing.windows(7).enumerate().filter(|(_, w)| *w == b"/data/0").map(|(i, _)| i).collect();
    names.iter().for_each(|&at| missing[at + 6] = b'x');
    assert!(names.len() == 2 && refusal(&missing).contains("data/0"));
}

/// Bytes changed at random and files cut short: an error or a file, never a panic; whatever is left can be read.
#[test]
fn random_damage_never_panics() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % n
    };
    let mut refused = 0;
    for round in 0..4000 {
        let good = if round % 2 == 0 { ZIP_FILE } else { STREAM_FILE };
        let mut bytes = good.to_vec();
        if round % 5 == 0 {
            bytes.truncate(random(bytes.len()));
        }
        for _ in 0..=random(4) {
            if !bytes.is_empty() {
                // Half of the damage where sizes and instructions are: the first two thousand bytes.
                let within = if round % 3 == 0 { bytes.len() } else { bytes.len().min(2000) };
                let at = random(within);
                bytes[at] = random(256) as u8;
            }
        }
        match open(&bytes) {
            Err(error) => {
                refused += 1;
                assert!(matches!(error, Error::Model { .. }));
            }
            Ok(file) => {
                for (_, item) in file.root().entries() {
                    let _ = item.values();
                    item.entries().for_each(|(_, inner)| drop(inner.values()));
                }
            }
        }
    }
    assert!(refused > 1000, "{refused} of 4000 damaged files were refused");
}
