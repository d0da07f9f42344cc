//! One Rust function per kernel, generated from its signature: a kernel that changes no longer fits its callers, and the
//! compiler says so on any machine.

use std::fmt::Write as _;

use crate::emulated::symbol;
use crate::nvcc::Image;
use crate::source::{Flavour, Kernel, Kind, Module};

/// The text of `launches.rs`: the embedded images, and the launch functions.
pub fn generate(modules: &[Module], images: &[Image]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "/// The compiled kernel files, by flavour.\npub(super) static MODULES: &[Module] = &[");
    for module in modules {
        let image = |f: &Flavour| {
            let found = images.iter().find(|i| i.module == module.name && i.flavour == *f);
            found.map_or("None".to_string(), |i| format!("Some(Image(&Aligned(*include_bytes!({:?}))))", i.path))
        };
        let list: Vec<String> = Flavour::ALL.iter().map(image).collect();
        let _ = writeln!(text, "    Module {{ name: {:?}, images: [{}] }},", module.name, list.join(", "));
    }
    let _ = writeln!(text, "];\n");
    for (number, module) in modules.iter().enumerate() {
        for kernel in &module.kernels {
            text += &launch(number, module, kernel);
        }
    }
    text
}

fn launch(number: usize, module: &Module, kernel: &Kernel) -> String {
    let (mut signature, mut checks, mut maps, mut values) = (String::new(), String::new(), vec![], vec![]);
    for parameter in &kernel.parameters {
        let name = &parameter.name;
        let kind = match parameter.kind {
            Kind::Size => {
                let _ = writeln!(checks, "    let {name} = fits({:?}, {name:?}, {name})?;", kernel.name);
                "usize".to_string()
            }
            Kind::Number(number) => number.to_string(),
            Kind::Map => "&TensorMap".to_string(),
            Kind::Array { element, writable, nullable } => {
                let array = if writable { format!("&mut SliceMut<{element}>") } else { format!("Slice<{element}>") };
                if nullable { format!("Option<{array}>") } else { array }
            }
        };
        let _ = write!(signature, ", {name}: {kind}");
        if parameter.kind == Kind::Map {
            maps.push(name.as_str());
        } else {
            values.push(format!("{name}.argument()"));
        }
    }
    let (name, file, block) = (&kernel.name, module.path.display(), kernel.block);
    let flavours = Flavour::ALL.map(|f| module.flavours.contains(&f));
    let emulated: Vec<Flavour> = module.flavours.iter().copied().filter(|_| module.only.is_none()).collect();
    let run = |f: Flavour| match emulated.contains(&f) {
        true => format!("Some({})", symbol(&module.name, f, name)),
        false => "None".to_string(),
    };
    let declare =
        |f: &Flavour| format!("        fn {}(arguments: *mut *mut c_void);\n", symbol(&module.name, *f, name));
    let declared: String = emulated.iter().map(declare).collect();
    let declared = match declared.is_empty() {
        true => String::new(),
        false => format!("    #[cfg(feature = \"emulator\")]\n    unsafe extern \"C\" {{\n{declared}    }}\n"),
    };
    let emulated = Flavour::ALL.map(run).join(", ");
    let call = match maps.is_empty() {
        true => "launch(&KERNEL, over".to_string(),
        false => format!("launch_mapped(&KERNEL, over, &[{}]", maps.join(", ")),
    };
    format!(
        r#"/// Launches `{name}` of `{file}`, in blocks of {block} threads.
///
/// # Errors
/// [`crate::Error::Device`] when the device refuses.
#[allow(clippy::too_many_arguments)]
pub fn {name}(on: &Gpu, over: Grid{signature}) -> Result<()> {{
{declared}    static KERNEL: Kernel = Kernel {{
        module: {number},
        name: {name:?},
        block: {block},
        flavours: {flavours:?},
        #[cfg(feature = "emulator")]
        emulated: [{emulated}],
    }};
{checks}    on.{call}, &[{values}])
}}

"#,
        values = values.join(", ")
    )
}
