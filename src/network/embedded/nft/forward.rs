//! A host firewall whose policy is to forward nothing (Docker's, ufw's) would cut pods off, and no rule in a table of our
//! own can overrule it. So where the chain `FORWARD` of iptables has that policy, two rules are put before its others.
//! They are such as iptables itself can show.

use std::io;

use super::expression::Expressions;
use super::{Batch, NFGEN, absent_is_fine, comment, commented, request};
use crate::sys::netlink::{CREATE, DUMP, Socket, errno};

const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const FAMILIES: [u8; 2] = [libc::NFPROTO_IPV4 as u8, libc::NFPROTO_IPV6 as u8];
const CHAIN_POLICY: u16 = 5;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// Lets packets from and to `bridge` pass where they would not. `tag` marks the rules as ours.
pub fn open(socket: &mut Socket, bridge: &str, tag: &str) -> io::Result<()> {
    for family in FAMILIES {
        if !drops(socket, family)? || !ours(socket, family, tag)?.is_empty() {
            continue;
        }
        let mut batch = Batch::new(family);
        for key in [libc::NFT_META_IIFNAME, libc::NFT_META_OIFNAME] {
            // without NLM_F_APPEND: before all others
            batch.add(libc::NFT_MSG_NEWRULE, CREATE, |m| {
                m.text(1, TABLE).text(2, CHAIN);
                m.nest(RULE_EXPRESSIONS, |m| {
                    Expressions(m).link(key, bridge, true).accept();
                });
                m.attr(RULE_USERDATA, &comment(tag));
            });
        }
        batch.commit(socket)?;
        tracing::info!(
            bridge,
            "the firewall's chain FORWARD drops by policy; it now lets pods pass"
        );
    }
    Ok(())
}

/// Removes what [`open`] put there. Fine if there is nothing.
pub fn close(socket: &mut Socket, tag: &str) -> io::Result<()> {
    for family in FAMILIES {
        let mut batch = Batch::new(family);
        for handle in ours(socket, family, tag)? {
            batch.add(libc::NFT_MSG_DELRULE, 0, |m| {
                m.text(1, TABLE).text(2, CHAIN).attr(RULE_HANDLE, &handle);
            });
        }
        if !batch.messages.is_empty() {
            absent_is_fine(batch.commit(socket))?;
        }
    }
    Ok(())
}

fn drops(socket: &mut Socket, family: u8) -> io::Result<bool> {
    let mut message = request(family, libc::NFT_MSG_GETCHAIN, 0);
    message.text(1, TABLE).text(3, CHAIN);
    match socket.get(message) {
        Ok(reply) => Ok(reply.attributes(NFGEN).find(CHAIN_POLICY) == Some(&(libc::NF_DROP as u32).to_be_bytes())),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The handles of our rules.
fn ours(socket: &mut Socket, family: u8, tag: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut message = request(family, libc::NFT_MSG_GETRULE, DUMP);
    message.text(1, TABLE).text(2, CHAIN);
    let rules = match socket.dump(&message) {
        Err(error) if errno(&error) == Some(libc::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let handles = rules.iter().filter_map(|rule| {
        let rule = rule.attributes(NFGEN);
        (commented(rule.find(RULE_USERDATA)?) == tag).then(|| rule.find(RULE_HANDLE).map(<[u8]>::to_vec))?
    });
    Ok(handles.collect())
}
