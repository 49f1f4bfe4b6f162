//! A guest of 512 bytes: writes a counter to disk 0 and then to disk 1, sector after sector, for ever.
//!
//! It is run by the processor, so `stop` stops it, unlike writes made through a monitor. The second write is asked for
//! only after the first was answered, so at any instant the counter on disk 1 is that of disk 0 or one less.
//!
//! ```asm
//!         cli; xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00; sti
//!         mov [0x7e00],eax
//! next:   inc dword [0x7e00]
//!         mov eax,[0x7e00]; and eax,1023; add eax,2048; mov [lba],eax
//!         mov dl,0x80; call put; mov dl,0x81; call put
//!         test byte [0x7e00],15; jnz next; hlt; jmp next    ; rests a tick now and then: its waiting for disks is all noise
//! put:    mov ax,0x4300; mov si,dap; int 0x13; ret      ; BIOS: extended write
//! dap:    db 16,0; dw 1; dw 0x7e00,0; lba: dd 0,0       ; one sector from 0x7e00
//! ```

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CODE: [u8; 87] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0x66, 0xa3, 0x00, 0x7e, 0x66, 0xff,
    0x06, 0x00, 0x7e, 0x66, 0xa1, 0x00, 0x7e, 0x66, 0x25, 0xff, 0x03, 0x00, 0x00, 0x66, 0x05, 0x00, 0x08, 0x00, 0x00,
    0x66, 0xa3, 0x4f, 0x7c, 0xb2, 0x80, 0xe8, 0x0f, 0x00, 0xb2, 0x81, 0xe8, 0x0a, 0x00, 0xf6, 0x06, 0x00, 0x7e, 0x0f,
    0x75, 0xd6, 0xf4, 0xeb, 0xd3, 0xb8, 0x00, 0x43, 0xbe, 0x47, 0x7c, 0xcd, 0x13, 0xc3, 0x10, 0x00, 0x01, 0x00, 0x00,
    0x7e, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// Makes a raw image bootable.
pub fn install(image: &Path) {
    let file = OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(&CODE, 0).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

/// The sectors the counter goes through.
const FIRST: usize = 2048;
const COUNT: usize = 1024;

/// The last counter on a disk.
pub fn counter(disk: &[u8]) -> u32 {
    let sector = |at: usize| u32::from_le_bytes(disk[at * 512..at * 512 + 4].try_into().unwrap());
    (FIRST..FIRST + COUNT).map(sector).max().unwrap()
}
