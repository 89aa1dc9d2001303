"""XML documents, batches and names of blocks: what is documented is read, anything else is refused."""

import random

import pytest

from asyncsync.errors import AsyncsyncError, UnavailableError
from asyncsync.stores.azure.batch_delete import batch_body, batch_results
from asyncsync.stores.azure.block_ids import (
    ID_LENGTH,
    Block,
    BlockList,
    BlockName,
    block_name_of,
    parts_of,
    reused_blocks,
    reused_etag,
)
from asyncsync.stores.azure.xml import block_list_document, block_list_of, page_of
from asyncsync.stores.base import Upload

UPLOAD = "00112233445566ff"
PAGE = """<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://x"><Blobs>
<Blob><Name>p/a b</Name><Properties><Last-Modified>Sat, 28 Nov 2026 08:38:43 GMT</Last-Modified><Etag>0x8D</Etag>
<Content-Length>5</Content-Length></Properties><Metadata><crc32c>mnG7TA==</crc32c></Metadata></Blob>
<Blob><Name Encoded="true">p/%01x</Name><Properties><Etag>0x8E</Etag><Content-Length>0</Content-Length></Properties>
</Blob>
<Blob><Name>p/dir</Name><Properties><Etag>0x8F</Etag><Content-Length>0</Content-Length>
<ResourceType>directory</ResourceType>
</Properties></Blob><BlobPrefix><Name>p/d/</Name></BlobPrefix></Blobs><NextMarker>m+1</NextMarker></EnumerationResults>"""
BLOCKS = """<?xml version="1.0"?><BlockList>
<CommittedBlocks><Block><Name>YQ==</Name><Size>3</Size></Block></CommittedBlocks>
<UncommittedBlocks><Block><Name>Yg==</Name><Size>4</Size></Block></UncommittedBlocks></BlockList>"""


def test_a_page_is_read():
    page = page_of("List", b"\xef\xbb\xbf" + PAGE.encode(), "p/")
    assert [(blob.name, blob.size, blob.version) for blob in page.blobs] == [
        ("p/a b", 5, "0x8D"),
        ("p/\x01x", 0, "0x8E"),
        ("p/dir", 0, "0x8F"),
    ]
    assert page.blobs[0].crc32c == 0x9A71BB4C
    assert [blob.is_directory for blob in page.blobs] == [False, False, True]
    assert (page.prefixes, page.marker) == (("p/d/",), "m+1")


def test_a_block_list_is_read():
    found = block_list_of("Get", BLOCKS.encode(), "0x8D", 3)
    assert (found.committed, found.uncommitted) == ((Block("YQ==", 3),), (Block("Yg==", 4),))
    assert found.complete


@pytest.mark.parametrize(
    "change",
    [
        ("EnumerationResults", "Results"),
        ("<Name>p/a b</Name>", ""),
        ("<Name>p/a b</Name>", "<Name>q/a</Name>"),
        ("<Etag>0x8D</Etag>", ""),
        ("<Content-Length>5</Content-Length>", "<Content-Length>-5</Content-Length>"),
        ("<Content-Length>5</Content-Length>", "<Content-Length>5e3</Content-Length>"),
        ("</EnumerationResults>", ""),
        ("<Properties>", "<Props>"),
    ],
)
def test_a_page_that_is_not_documented_is_refused(change):
    assert change[0] in PAGE
    with pytest.raises(UnavailableError, match="List"):
        page_of("List", PAGE.replace(*change).encode(), "p/")


@pytest.mark.parametrize("change", [("BlockList>", "List>"), ("YQ==", "Y"), ("YQ==", ""), ("<Size>3<", "<Size>x<")])
def test_a_block_list_that_is_not_documented_is_refused(change):
    with pytest.raises(UnavailableError):
        block_list_of("Get", BLOCKS.replace(*change).encode(), "0x8D", 3)


def test_damaged_documents_give_errors_of_ours_only():
    dice = random.Random(11)
    for _ in range(2000):
        data = bytearray(dice.choice([PAGE, BLOCKS]).encode())
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(data))
            data[at : at + dice.randrange(4)] = dice.randbytes(dice.randrange(3))
        for read in (lambda: page_of("x", bytes(data), "p/"), lambda: block_list_of("x", bytes(data), "v", 3)):
            try:
                read()
            except AsyncsyncError:
                continue


# Names of blocks


@pytest.mark.parametrize("crc", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize(("number", "offset"), [(1, 0), (50_000, 190 << 40)])
def test_a_block_name_carries_number_offset_and_checksum(number, offset, crc):
    name = BlockName(UPLOAD, number, offset, crc)
    text = name.encoded()
    assert len(text) == ID_LENGTH
    assert block_name_of(text) == name


@pytest.mark.parametrize("text", ["", "YQ==", "AAAA", "A" * 36, "not base64", "é" * 36, "YXMx" + "/" * 32])
def test_blocks_of_other_programs_are_none_of_ours(text):
    assert block_name_of(text) is None


def test_parts_are_those_of_one_upload():
    mine, other = BlockName(UPLOAD, 2, 5, 7).encoded(), BlockName("ff" * 8, 1, 0, 7).encoded()
    parts = parts_of(Upload("k", UPLOAD), [Block(mine, 4), Block(other, 4), Block("YQ==", 4)])
    assert [(part.number, part.offset, part.size, part.etag, part.crc32c) for part in parts] == [(2, 5, 4, mine, 7)]


def test_blocks_are_used_again_only_if_they_are_exactly_the_range():
    names = [BlockName(UPLOAD, number, 10 * number, 1).encoded() for number in (1, 2, 3)]
    listed = BlockList(tuple(Block(name, 10) for name in names), (), "v", 30)
    assert [block.name for block in listed.between(10, 20)] == names[1:]
    for start, size in ((0, 15), (5, 10), (10, 30), (30, 10), (0, 9)):
        assert listed.between(start, size) is None, (start, size)
    foreign = BlockList((Block("YQ==", 10),), (), "v", 10)
    assert foreign.between(0, 10) is None


def test_the_etag_of_reused_blocks_can_be_read_back():
    blocks = [Block(BlockName(UPLOAD, number, 0, 1).encoded(), 1) for number in (1, 2)]
    assert reused_blocks(reused_etag("0x8D:x", blocks)) == ("0x8D:x", [block.name for block in blocks])
    assert reused_blocks(blocks[0].name) is None


def test_a_block_list_says_which_blocks_are_committed():
    assert block_list_document([(True, "YQ=="), (False, "Yg==")]).endswith(
        b"<BlockList><Committed>YQ==</Committed><Uncommitted>Yg==</Uncommitted></BlockList>"
    )


# Batches


def test_the_results_of_a_batch_come_in_any_order():
    one = "--b\r\nContent-Type: application/http\r\nContent-ID: 1\r\n\r\nHTTP/1.1 404 No\r\n"
    one += "x-ms-error-code: BlobNotFound\r\n\r\n"
    two = "--b\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n"
    content = f"{one}\r\n{two}\r\n--b--\r\n".encode()
    assert batch_results(content, "multipart/mixed; boundary=b") == {1: (404, "BlobNotFound"), 0: (202, "")}
    assert batch_results(content[:-8], "multipart/mixed; boundary=b") is None
    assert batch_results(content, "text/html") is None


def test_a_batch_has_a_request_for_each_target():
    body, content_type = batch_body("DELETE", [("/a/b?x", {"x-ms-date": "now"}), ("/c", {})])
    assert content_type.startswith("multipart/mixed; boundary=batch_")
    assert body.count(b"DELETE ") == 2
    assert b"Content-ID: 1\r\n\r\nDELETE /c HTTP/1.1\r\n" in body
