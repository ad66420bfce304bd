//! Rate limits: a token bucket (tc-tbf(8)) on a link, for what leaves by it.

use crate::sys::netlink::{ACK, CREATE, Message, REPLACE};

// linux/rtnetlink.h and linux/pkt_sched.h, where libc has no name for them
const RTM_NEWQDISC: u16 = 36;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_H_ROOT: u32 = 0xffff_ffff;
const LINKLAYER_ETHERNET: u8 = 1;

/// How much may go at once, as a part of what goes in a second, and how long a packet may wait for its turn.
const BURST_PER_SECOND: u64 = 10;
const WAIT_PER_SECOND: u64 = 10;

/// Some packets of the largest size must fit into either at the lowest rate.
const LEAST_BYTES: u64 = 128 << 10;

/// The message that limits what leaves by the link `index` to `bits_per_second`.
pub fn limit(index: u32, bits_per_second: u64) -> Message {
    let rate = bits_per_second / 8;
    let bytes = |part: u64| u32::try_from((rate / part).max(LEAST_BYTES)).unwrap_or(u32::MAX);
    let burst = bytes(BURST_PER_SECOND);
    let queue = burst.saturating_add(bytes(WAIT_PER_SECOND));
    // `struct tcmsg`: the family (none) with its padding, the link, a handle (any), the parent, nothing else.
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
    let mut message = Message::new(RTM_NEWQDISC, ACK | CREATE | REPLACE, &fixed);
    message.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, |m| {
        m.attr(TCA_TBF_PARMS, &parameters(rate, queue))
            .u32(TCA_TBF_BURST, burst);
        if u32::try_from(rate).is_err() {
            m.attr(TCA_TBF_RATE64, &rate.to_ne_bytes());
        }
    });
    message
}

/// `struct tc_tbf_qopt`: two `struct tc_ratespec`, of which the peak's is empty, then the queue's length in bytes, and
/// the burst as a time and the largest packet, which the kernel works out.
fn parameters(rate: u64, queue: u32) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[1] = LINKLAYER_ETHERNET;
    bytes[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    bytes[24..28].copy_from_slice(&queue.to_ne_bytes());
    bytes
}
