--- Streams of lines of JSON, as watches, commands and agents read them, and what goes into them.
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

--- A function that takes a stream in chunks and calls fn(message) for each of its lines that holds a JSON object;
--- others are skipped. Raises "protocol" for a line of more than @max bytes (nil: any).
function M.of(fn, max)
  local parts, bytes = {}, 0 -- of the line that has not ended
  local function add(piece)
    parts[#parts + 1] = piece
    bytes = bytes + #piece
    if max and bytes > max then errors.raise("protocol", ("a line of more than %d bytes"):format(max)) end
  end
  return function(chunk)
    local from = 1
    local stop = chunk:find("\n", 1, true)
    while stop do
      add(chunk:sub(from, stop - 1))
      local line = table.concat(parts)
      parts, bytes, from = {}, 0, stop + 1
      local message = line ~= "" and json.decode(line)
      if type(message) == "table" then
        fn(message)
      end
      stop = chunk:find("\n", from, true)
    end
    add(chunk:sub(from))
  end
end

local PIECE = 65536

--- @text in pieces that neither side has to hold many of, cut between characters where it has any: an iterator.
function M.pieces(text)
  local at = 1
  return function()
    if at > #text then
      return nil
    end
    local to = math.min(at + PIECE - 1, #text)
    local cut = to < #text and utf8.offset(text, 0, to + 1) or to + 1
    if cut <= at then
      cut = to + 1
    end
    local piece = text:sub(at, cut - 1)
    at = cut
    return piece
  end
end

return M
