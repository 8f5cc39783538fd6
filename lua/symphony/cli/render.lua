--- What a command returns, as text for a person or as JSON.
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

-- A key or a name may hold anything; nothing of it may move the cursor or start a line.
local function plain(v)
  local text = json.clean(v == nil and "" or tostring(v))
  return (text:gsub("[\0-\31\127]", function(char)
    return ("\\x%02x"):format(char:byte())
  end))
end

M.plain = plain

local function cell(v)
  if v == nil or v == json.null then
    return "-"
  elseif v == true then
    return "yes"
  elseif v == false then
    return "no"
  elseif type(v) == "table" then
    return plain(json.encode(v))
  elseif v == "" then
    return "-"
  end
  return plain(v)
end

local function paint(text, code, color)
  return color and ("\27[%sm%s\27[0m"):format(code, text) or text
end

local function pad(text, width)
  return text .. (" "):rep(width - utf8.len(text))
end

-- Much at once would hold up the daemon: a function to be called with the bytes of each piece of work, which pauses
-- now and then. @pause: waits for a turn of the loop, or nil.
local BYTES, ITEM = 64 * 1024, 256

local function breather(pause)
  local done = 0
  return function(bytes)
    done = done + ITEM + bytes
    if pause and done >= BYTES then
      done = 0
      pause()
    end
  end
end

--- Aligned columns: @columns the headings, @rows arrays of values. @pause: see result.
function M.table(columns, rows, color, pause)
  local breathe = breather(pause)
  local widths, cells = {}, {}
  for c, name in ipairs(columns) do
    widths[c] = utf8.len(name)
  end
  for r, row in ipairs(rows) do
    cells[r] = {}
    for c = 1, #columns do
      cells[r][c] = cell(row[c])
      widths[c] = math.max(widths[c], utf8.len(cells[r][c]))
    end
    breathe(0)
  end
  local lines = {}
  local function line(texts, code)
    local out = {}
    for c, text in ipairs(texts) do
      out[c] = pad(text, c < #columns and widths[c] or 0)
    end
    lines[#lines + 1] = paint(table.concat(out, "  "), code, code and color)
  end
  line(columns, "1")
  for _, row in ipairs(cells) do
    line(row)
    breathe(0)
  end
  return table.concat(lines, "\n") .. "\n"
end

local function sorted_keys(t)
  local keys = {}
  for k in pairs(t) do
    keys[#keys + 1] = k
  end
  table.sort(keys, function(a, b)
    return tostring(a) < tostring(b)
  end)
  return keys
end

-- Objects without a description: a column for every key that occurs.
local function list(items, color)
  local seen = {}
  for _, item in ipairs(items) do
    for k in pairs(item) do
      seen[k] = true
    end
  end
  local keys, rows = sorted_keys(seen), {}
  for i, item in ipairs(items) do
    rows[i] = {}
    for c, k in ipairs(keys) do
      rows[i][c] = item[k]
    end
  end
  local columns = {}
  for c, k in ipairs(keys) do
    columns[c] = tostring(k):upper()
  end
  return M.table(columns, rows, color)
end

local function fields(t)
  local keys, width, lines = sorted_keys(t), 0, {}
  for _, k in ipairs(keys) do
    width = math.max(width, utf8.len(plain(k)))
  end
  for i, k in ipairs(keys) do
    lines[i] = pad(plain(k), width) .. "  " .. cell(t[k]) .. "\n"
  end
  return table.concat(lines)
end

local function ended(text)
  return (text == "" or text:sub(-1) == "\n") and text or text .. "\n"
end

local function default(data, color)
  if data == nil or data == true then
    return ""
  elseif type(data) ~= "table" then
    return ended(tostring(data))
  elseif type(data[1]) == "table" then
    return list(data, color)
  elseif data[1] ~= nil then
    local lines = {}
    for i, item in ipairs(data) do
      lines[i] = cell(item) .. "\n"
    end
    return table.concat(lines)
  end
  return fields(data)
end

--- @data as JSON; a long array item by item, to the same text as in one go. @pause: see result.
function M.encode(data, pause)
  if type(data) ~= "table" or not pause or #data < 2 then
    return json.encode(data)
  end
  local breathe, out = breather(pause), {}
  for i, item in ipairs(data) do
    out[i] = json.encode(item)
    breathe(#out[i])
  end
  return "[" .. table.concat(out, ",") .. "]"
end

--- The text of a command's @data. @how: nil, {columns = {...}, row = function(item) -> {...}, empty = text for no
--- items}, or {text = function(data, opts) -> text}; in either note = text is for standard error, behind it. @opts:
--- {json =, color =, width =, pause =}; pause(), where there is one, lets others have their turn, and is called now and
--- then while there is much to do.
function M.result(data, how, opts)
  if opts.json then
    return M.encode((data == nil or data == true) and {} or data, opts.pause) .. "\n"
  elseif not how then
    return default(data, opts.color)
  elseif how.text then
    return ended(how.text(data, opts))
  end
  local rows, breathe = {}, breather(opts.pause)
  for i, item in ipairs(data) do
    rows[i] = how.row(item)
    breathe(0)
  end
  if #rows == 0 and how.empty then
    return ended(how.empty)
  end
  return M.table(how.columns, rows, opts.color, opts.pause)
end

-- Lines after the first are indented as far as the first one's text.
local function indented(text, by)
  return (text:gsub("\n", "\n" .. (" "):rep(by)))
end

--- The text for an error, for standard error. @opts: {json =, color_err =}.
function M.error(err, opts)
  if opts.json then
    return json.encode(errors.body(err)) .. "\n"
  end
  local message = plain(err.message:gsub("%s+$", "")):gsub("\\x0a", "\n")
  local text = ("%s %s (%s)\n"):format(paint("symphony:", "1;31", opts.color_err), indented(message, 2), err.code)
  if err.hint then
    text = text .. "  hint: " .. indented(plain(err.hint):gsub("\\x0a", "\n"), 8) .. "\n"
  end
  return text
end

return M
