local backup = require "symphony.cluster.backup"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local restore = require "symphony.cluster.restore"

local function refused(err)
  assert(errors.is(err) and (err.code == "corrupt" or err.code == "invalid"), tostring(err))
  assert(#err.message < 1000)
end

local function check_entries(entries)
  local before
  for _, row in ipairs(entries) do
    assert(type(row.key) == "string" and type(row.value) == "string" and math.type(row.revision) == "integer")
    assert(not before or before < row.key, "out of order")
    before = row.key
  end
end

-- What is restored is cut into steps that the daemon takes.
local function check_steps(entries)
  local n = 0
  local none = function() return nil end
  for batch in restore.batches(restore.diff(entries, none, crypto.sha256)) do
    assert(#batch > 0 and #batch <= restore.OPS_MAX)
    n = n + #batch
    restore.encode(batch)
  end
  assert(n == #entries)
end

local function check_file(text)
  local header, entries = backup.parse(text, crypto.sha256)
  if not header then return refused(entries) end
  check_entries(entries)
  for _, row in ipairs(entries) do assert(backup.is_covered(row.key)) end
  check_steps(entries)
end

-- The digest is put right, or nothing would ever get past it.
local function signed(text)
  return text .. '{"sha256":"' .. backup.digest(text, crypto.sha256) .. '"}\n'
end

local function check(text)
  check_file(text)
  check_file(signed(text))
  local header, entries = backup.collect(text)
  if not header then return refused(entries) end
  check_entries(entries)
  assert(header.keys == #entries and math.type(header.revision) == "integer")
  -- What a client writes down of it, it reads again; keys that are no backup's are the daemon's mistake.
  for _, row in ipairs(entries) do
    if not backup.is_covered(row.key) then return end
  end
  local again, same = assert(backup.parse(backup.file(header, entries, crypto.sha256), crypto.sha256))
  assert(#same == #entries and again.cluster_id == header.cluster_id)
  for i, row in ipairs(same) do
    assert(row.key == entries[i].key and row.value == entries[i].value and row.revision == entries[i].revision)
  end
end

local head = backup.header_line { cluster_id = "c1", created = 1, keys = 2, revision = 9 }
local keys = backup.put_line("/kv/a", "1", 7) .. backup.put_line("/kv/b\xff", "\0\xff", 8)

return {
  check = check,
  seeds = { head .. keys, head .. keys .. backup.delete_line("/kv/a", 9) .. backup.end_line(9),
    signed(head .. keys), head .. backup.put_line("/token/x", "{}", 3) },
  words = { head, '{"k":"/kv/a","r":7,"v":"1"}\n', '"d":true,', '"d":false,', '"k_base64":"', '"v_base64":"',
    '{"end":true,"revision":9}\n',
    '{"end":', '"revision":', '"keys":0', "\n", "\n{", "{\n", "{", "}", "1e999", "0.5", "null", "[]" },
}
