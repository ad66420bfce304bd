//! A rule's expressions: load into a register, compare, act.

use super::{DATA_VALUE, LIST_ELEM};
use crate::sys::netlink::Message;

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;

/// The first of the sixteen registers of four bytes; longer values take several in a row.
pub const R0: u32 = libc::NFT_REG32_00 as u32;

/// Which packet of a connection's first one a `ct` expression reads: the original direction.
const ORIGINAL: u8 = 0;
const ADDRESS_TYPE: u32 = 3;
const OF_DESTINATION: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Where in a packet bytes are read.
#[derive(Clone, Copy)]
pub enum Header {
    Network = 1,
    Transport = 2,
}

/// The expressions of one rule, in order.
pub struct Expressions<'a>(pub(super) &'a mut Message);

impl Expressions<'_> {
    fn push(&mut self, name: &str, data: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(LIST_ELEM, |m| {
            m.text(EXPR_NAME, name).nest(EXPR_DATA, data);
        });
        self
    }

    /// Loads a property of the packet (`NFT_META_*`).
    pub fn meta(&mut self, key: libc::c_int, register: u32) -> &mut Self {
        self.push("meta", |m| {
            m.be32(1, register).be32(2, key as u32);
        })
    }

    /// Loads bytes of the packet.
    pub fn payload(&mut self, header: Header, offset: u32, length: u32, register: u32) -> &mut Self {
        self.push("payload", |m| {
            m.be32(1, register)
                .be32(2, header as u32)
                .be32(3, offset)
                .be32(4, length);
        })
    }

    /// Loads a property of the connection (`NFT_CT_*`).
    pub fn ct(&mut self, key: u32, register: u32) -> &mut Self {
        self.push("ct", |m| {
            m.be32(1, register).be32(2, key);
        })
    }

    /// Loads a part of the connection's first packet, as it was before any translation.
    pub fn ct_original(&mut self, key: u32, register: u32) -> &mut Self {
        self.push("ct", |m| {
            m.be32(1, register).be32(2, key).attr(3, &[ORIGINAL]);
        })
    }

    /// Goes on if the destination is an address of this host.
    pub fn destined_here(&mut self) -> &mut Self {
        self.push("fib", |m| {
            m.be32(1, R0).be32(2, ADDRESS_TYPE).be32(3, OF_DESTINATION);
        });
        self.equals(R0, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// Goes on if the register holds `value`.
    pub fn equals(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.compare(EQUAL, register, value)
    }

    /// Goes on if the register does not hold `value`.
    pub fn differs(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.compare(NOT_EQUAL, register, value)
    }

    fn compare(&mut self, operator: u32, register: u32, value: &[u8]) -> &mut Self {
        self.push("cmp", |m| {
            m.be32(1, register).be32(2, operator).nest(3, |m| {
                m.attr(DATA_VALUE, value);
            });
        })
    }

    /// Keeps only the bits of `mask` in the register.
    pub fn mask(&mut self, register: u32, mask: &[u8]) -> &mut Self {
        self.push("bitwise", |m| {
            m.be32(1, register).be32(2, register).be32(3, mask.len() as u32);
            m.nest(4, |m| {
                m.attr(DATA_VALUE, mask);
            });
            m.nest(5, |m| {
                m.attr(DATA_VALUE, &vec![0; mask.len()]);
            });
        })
    }

    /// Goes on if the map knows the key at `register`, and loads what it says over it.
    pub fn lookup(&mut self, map: &str, register: u32) -> &mut Self {
        self.push("lookup", |m| {
            m.text(1, map).be32(2, register).be32(3, register);
        })
    }

    /// Goes on if the map knows the key at `register`.
    pub fn known(&mut self, map: &str, register: u32) -> &mut Self {
        self.push("lookup", |m| {
            m.text(1, map).be32(2, register);
        })
    }

    /// Goes on for packets of `family` (`NFPROTO_IPV4` or `NFPROTO_IPV6`).
    pub fn family(&mut self, family: u8) -> &mut Self {
        self.meta(libc::NFT_META_NFPROTO, R0).equals(R0, &[family])
    }

    /// Goes on for packets of (`true`) or not of (`false`) the link that `key` loads the name of.
    pub fn link(&mut self, key: libc::c_int, name: &str, same: bool) -> &mut Self {
        let mut padded = [0; libc::IFNAMSIZ];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key, R0);
        if same {
            self.equals(R0, &padded)
        } else {
            self.differs(R0, &padded)
        }
    }

    /// Rewrites the destination to the address and port that `registers` hold.
    pub fn dnat(&mut self, family: u8, address: u32, port: u32) -> &mut Self {
        self.push("nat", |m| {
            m.be32(1, libc::NFT_NAT_DNAT as u32)
                .be32(2, u32::from(family))
                .be32(3, address)
                .be32(5, port);
        })
    }

    /// Rewrites the source to an address of the outgoing link.
    pub fn masquerade(&mut self) -> &mut Self {
        self.push("masq", |_| {})
    }

    /// Drops the packet.
    pub fn drop(&mut self) -> &mut Self {
        self.verdict(libc::NF_DROP, None)
    }

    /// Lets the packet pass this table.
    pub fn accept(&mut self) -> &mut Self {
        self.verdict(libc::NF_ACCEPT, None)
    }

    /// Goes through another chain first.
    pub fn jump(&mut self, chain: &str) -> &mut Self {
        self.verdict(libc::NFT_JUMP, Some(chain))
    }

    fn verdict(&mut self, code: libc::c_int, chain: Option<&str>) -> &mut Self {
        self.push("immediate", |m| {
            m.be32(1, libc::NFT_REG_VERDICT as u32).nest(2, |m| {
                m.nest(DATA_VERDICT, |m| {
                    m.be32(1, code as u32);
                    if let Some(chain) = chain {
                        m.text(2, chain);
                    }
                });
            });
        })
    }
}
