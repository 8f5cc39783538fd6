-- A backup: the users' data as lines of JSON. Secrets, members and the cluster's identity are not in it.
--
-- A file: a header, one line a key in the order of the keys, and a digest of all that.
--   {"symphony_backup":1,"cluster_id":...,"revision":...,"keys":...,"created":...}
--   {"k":"/kv/a","r":7,"v":"1"}            k_base64, v_base64 for what is not UTF-8
--   {"sha256":"..."}                       the SHA-256 of the SHA-256 of each MiB of what stands before it
-- The daemon streams it without stopping the world: pages of keys, and between them what has changed meanwhile
-- ({"k":...,"d":true,"r":...} for a delete); the newest of a key counts, and all together is the state at one revision.
local errors = require "symphony.errors"
local json = require "symphony.json"
local values = require "symphony.cluster.values"

local M = {}

M.FORMAT = 1
local PIECE = 1 << 20
local TRAILER_MAX = 256 -- bytes of the last line, and more
-- What a backup holds and a restore brings back.
M.PREFIXES = { "/assign/", "/kv/", "/policy-history/", "/policy/", "/res/", "/token/" }
-- What makes sense in another cluster: not its tokens, which pin the old CA, nor work for nodes it does not have.
M.FOREIGN_PREFIXES = { "/kv/", "/policy-history/", "/policy/", "/res/" }

function M.is_covered(key, prefixes)
  for _, prefix in ipairs(prefixes or M.PREFIXES) do
    if key:sub(1, #prefix) == prefix then return true end
  end
  return false
end

-- Lines of the stream.
function M.put_line(key, value, revision)
  local row = values.put_bytes({ r = revision }, "k", key)
  return json.encode(values.put_bytes(row, "v", value)) .. "\n"
end

function M.delete_line(key, revision)
  return json.encode(values.put_bytes({ r = revision, d = true }, "k", key)) .. "\n"
end

function M.header_line(header)
  header.symphony_backup = M.FORMAT
  return json.encode(header) .. "\n"
end

function M.end_line(revision)
  return json.encode { ["end"] = true, revision = revision } .. "\n"
end

local function bad(why)
  return nil, errors.new("corrupt", "this is no whole backup: " .. why)
end

local function entry(line, number)
  local row = json.decode(line)
  if type(row) ~= "table" then return bad(("line %d is not JSON"):format(number)) end
  local key, err = values.get_bytes(row, "k")
  if not key then return bad(("line %d has no key%s"):format(number, err and ": " .. err.message or "")) end
  if math.type(row.r) ~= "integer" then return bad(("line %d has no revision"):format(number)) end
  local value
  if row.d ~= true then
    value, err = values.get_bytes(row, "v")
    if not value then return bad(("line %d has no value%s"):format(number, err and ": " .. err.message or "")) end
  end
  return { key = key, value = value, revision = row.r }
end

-- The whole lines of @text. Not by a pattern: it would look through an unfinished line once for each of its bytes.
local function each_line(text)
  local from = 1
  return function()
    local stop = text:find("\n", from, true)
    if not stop then return nil end
    local line = text:sub(from, stop - 1)
    from = stop + 1
    return line
  end
end

local function check_header(line)
  local header = json.decode(line or "")
  if type(header) ~= "table" or header.symphony_backup == nil then return bad("it does not begin like one") end
  if header.symphony_backup ~= M.FORMAT then
    return nil, errors.new("invalid", ("the backup's format is %s; this symphony reads %d"):format(
      tostring(header.symphony_backup), M.FORMAT))
  end
  if type(header.cluster_id) ~= "string" then return bad("its header names no cluster") end
  return header
end

-- What the daemon streamed, to header, entries (sorted; the newest of each key); nil, err.
function M.collect(stream)
  local header, err, over
  local newest, number = {}, 0
  for line in each_line(stream) do
    number = number + 1
    if over then return bad("there is more behind its end") end
    if number == 1 then
      header, err = check_header(line)
      if not header then return nil, err end
    elseif line:sub(1, 7) == '{"end":' then
      over = json.decode(line)
    else
      local row
      row, err = entry(line, number)
      if not row then return nil, err end
      local known = newest[row.key]
      if not known or row.revision >= known.revision then newest[row.key] = row end
    end
  end
  if not header then return bad("it is empty") end
  if type(over) ~= "table" or math.type(over.revision) ~= "integer" then return bad("its end is missing") end
  local entries = {}
  for _, row in pairs(newest) do
    if row.value then entries[#entries + 1] = row end
  end
  table.sort(entries, function(a, b) return a.key < b.key end)
  header.revision, header.keys = over.revision, #entries
  return header, entries
end

-- The digest of a text of any length. @sha256(text): 32 bytes, of at most a few MiB at a time.
function M.digest(text, sha256)
  local parts = {}
  for at = 1, #text, PIECE do parts[#parts + 1] = sha256(text:sub(at, at + PIECE - 1)) end
  return (sha256(table.concat(parts)):gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

-- The text of a file.
function M.file(header, entries, sha256)
  local lines = { M.header_line(header) }
  for _, row in ipairs(entries) do lines[#lines + 1] = M.put_line(row.key, row.value, row.revision) end
  local body = table.concat(lines)
  return body .. json.encode { sha256 = M.digest(body, sha256) } .. "\n"
end

-- The text of a file, hostile, to header, entries, digest; nil, err. Nothing is believed before the digest holds.
function M.parse(text, sha256)
  local last = text:sub(-TRAILER_MAX):match("\n(%b{})\n$")
  local trailer = last and json.decode(last)
  if type(trailer) ~= "table" or type(trailer.sha256) ~= "string" then
    return bad("its last line, the SHA-256, is missing")
  end
  local body = text:sub(1, #text - #last - 1)
  if M.digest(body, sha256) ~= trailer.sha256 then
    return bad("its SHA-256 does not fit: it has been changed or damaged")
  end
  local entries, number = {}, 0
  local header, err, before
  for line in each_line(body) do
    number = number + 1
    if number == 1 then
      header, err = check_header(line)
      if not header then return nil, err end
    else
      local row
      row, err = entry(line, number)
      if not row then return nil, err end
      if not row.value or (before and row.key <= before) then return bad(("line %d is out of order"):format(number)) end
      if not M.is_covered(row.key) then return bad(("line %d has a key that no backup holds"):format(number)) end
      before = row.key
      entries[#entries + 1] = row
    end
  end
  if not header then return bad("it is empty") end
  if header.keys ~= #entries then
    return bad(("it should have %s keys and has %d"):format(tostring(header.keys), #entries))
  end
  return header, entries, trailer.sha256
end

return M
