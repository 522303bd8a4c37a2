//! Blocks as they are stored: as their leader encoded them, or compressed. The item tells both lengths; a block that
//! does not become shorter is stored as it is. The checksum is that of the block itself, so what is read is checked
//! after it was decompressed.

use bytes::Bytes;
use multiraft_engine::block::{Block, BlockError};
use multiraft_engine::traits::GroupWrite;

use crate::format::BlockItem;

/// How the blocks of entries are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they are: reads of full segments need no copy.
    #[default]
    None,
    /// Each block by itself with LZ4. Costs time at each append and each read.
    Lz4,
}

/// A block on its way into a batch.
pub(crate) struct Packed {
    pub(crate) item: BlockItem,
    pub(crate) bytes: Bytes,
}

impl Packed {
    /// The block as it is.
    pub(crate) fn plain(block: &Block) -> Self {
        Self {
            item: BlockItem::of(block),
            bytes: block.bytes().clone(),
        }
    }

    pub(crate) fn new(block: &Block, compression: Compression) -> Self {
        let mut packed = Self::plain(block);
        if compression == Compression::Lz4 {
            let short = lz4_flex::block::compress(block.bytes());
            if short.len() < block.bytes().len() {
                packed.item.bytes = u32::try_from(short.len()).expect("shorter than a block");
                packed.bytes = short.into();
            }
        }
        packed
    }
}

/// All blocks of these writes, in order; none if they are stored as they are.
pub(crate) fn pack(writes: &[GroupWrite], compression: Compression) -> Vec<Packed> {
    match compression {
        Compression::None => Vec::new(),
        Compression::Lz4 => {
            let blocks = writes.iter().flat_map(|write| &write.blocks);
            blocks.map(|b| Packed::new(b, compression)).collect()
        }
    }
}

/// The block that was stored as these bytes, checked.
pub(crate) fn unpack(stored: Bytes, block_bytes: u32) -> Result<Block, BlockError> {
    if stored.len() == block_bytes as usize {
        return Block::decode(stored);
    }
    let block = lz4_flex::block::decompress(&stored, block_bytes as usize);
    Block::decode(block.map_err(|_| BlockError::Malformed)?.into())
}
