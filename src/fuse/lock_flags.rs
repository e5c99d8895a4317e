//! Which of the two families a lock request is of: flock(2) or fcntl(2). The kernel says so in the flags of its request,
//! and fuser 0.18 hands on everything but those. Taking one for the other would make a program that uses both wait for
//! itself.
//!
//! Unsafe, as it reads behind the header that fuser lends: the request is one piece of memory, and the header is its
//! beginning (`AnyRequest::try_from` and `Request::ref_cast` of fuser 0.18.0, on which `Cargo.toml` insists). What is read
//! is compared with what fuser says of the same request, and with the length in the header.
#![allow(unsafe_code)]

use fuser::Request;

/// `struct fuse_in_header` of Linux: its length and where in it the length of the request is.
const HEADER_BYTES: usize = 40;
/// `struct fuse_lk_in` behind it: handle, owner, start, end (8 bytes each), kind, process, flags, padding (4 bytes each).
const LK_BYTES: usize = 48;
const FH: usize = 0;
const OWNER: usize = 8;
const FLAGS: usize = 40;
/// `FUSE_LK_FLOCK`.
const FLOCK: u32 = 1;

/// Whether the lock request `req`, of handle `fh` and of `owner`, comes from flock(2). `None` when it does not look like
/// such a request. Only for the request that is being served, in `setlk`.
pub(super) fn is_flock(req: &Request, fh: u64, owner: u64) -> Option<bool> {
    const { assert!(size_of::<Request>() == HEADER_BYTES) };
    let start = std::ptr::from_ref(req).cast::<u8>();
    // SAFETY: the header's first field is the length of the whole request, as the kernel wrote it and fuser checked it
    // against the buffer that it read into. Within that length the bytes behind the header are initialised, and they
    // outlive the borrow of `req`, since the buffer does.
    let body = unsafe {
        let len = start.cast::<u32>().read_unaligned();
        if (len as usize) < HEADER_BYTES + LK_BYTES {
            return None;
        }
        start.add(HEADER_BYTES).cast::<[u8; LK_BYTES]>().read()
    };
    let long = |at: usize| Some(u64::from_ne_bytes(body.get(at..at + 8)?.try_into().ok()?));
    let flags = u32::from_ne_bytes(body.get(FLAGS..FLAGS + 4)?.try_into().ok()?);
    (long(FH) == Some(fh) && long(OWNER) == Some(owner)).then_some(flags & FLOCK != 0)
}
