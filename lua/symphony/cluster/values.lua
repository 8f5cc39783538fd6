-- What people write on command lines and requests carry: names, labels, durations, byte strings in JSON. Pure.
local errors = require "symphony.errors"

local M = {}

M.LABELS_MAX = 32

-- A name of a node: 1 to 63 of a-z A-Z 0-9 . _ -, beginning with a letter or digit, and not all digits (that would be
-- a raft id) nor 26 characters that could be a node id.
function M.check_name(text)
  if type(text) ~= "string" or not text:match("^%w[%w%._%-]*$") or #text > 63 then
    return nil, errors.new("invalid", "a name is 1 to 63 letters, digits, dots, dashes and underscores, "
      .. "beginning with a letter or digit")
  end
  if text:match("^%d+$") then
    return nil, errors.new("invalid", "a name of digits only would be taken for a raft id")
  end
  if M.is_node_id(text) then
    return nil, errors.new("invalid", "this name would be taken for a node id")
  end
  return text
end

function M.is_node_id(text)
  return type(text) == "string" and #text == 26 and text:match("^0[0-9a-v]+$") ~= nil
end

-- A host name to a name: what does not fit is replaced; always valid.
function M.name_from(host)
  local name = (host or ""):gsub("%..*$", ""):gsub("[^%w%-_]", "-"):gsub("^[%-_]+", ""):sub(1, 50)
  if not M.check_name(name) then name = "node-" .. name end
  return M.check_name(name) and name or "node"
end

-- {k = v} of {"k=v", ...}, from a command line; or nil, err.
function M.parse_labels(list)
  local labels, count = {}, 0
  for _, text in ipairs(list or {}) do
    local key, value = text:match("^([^=]+)=(.*)$")
    if not key then
      return nil, errors.new("usage", ("label \"%s\" is not of the form key=value"):format(text:sub(1, 80)))
    end
    labels[key] = value
    count = count + 1
  end
  local ok, err = M.check_labels(labels)
  if not ok then return nil, err end
  return labels
end

function M.check_labels(labels)
  if type(labels) ~= "table" then return nil, errors.new("invalid", "labels are an object of strings") end
  local count = 0
  for key, value in pairs(labels) do
    count = count + 1
    if type(key) ~= "string" or not key:match("^%w[%w%._/%-]*$") or #key > 63 then
      return nil, errors.new("invalid", ("label key \"%s\": 1 to 63 letters, digits and ._/-"):format(
        tostring(key):sub(1, 80)))
    end
    if type(value) ~= "string" or not value:match("^[%w%._/%-]*$") or #value > 63 then
      return nil, errors.new("invalid", ("value of label %s: at most 63 letters, digits and ._/-"):format(key))
    end
  end
  if count > M.LABELS_MAX then
    return nil, errors.new("invalid", ("at most %d labels"):format(M.LABELS_MAX))
  end
  return true
end

-- "k=v,k2=v2", sorted.
function M.format_labels(labels)
  local out = {}
  for key, value in pairs(labels or {}) do out[#out + 1] = key .. "=" .. value end
  table.sort(out)
  return table.concat(out, ",")
end

local UNITS = { s = 1, m = 60, h = 3600, d = 86400, w = 7 * 86400 }
local DURATION_MAX = 10 * 365 * 86400

-- Seconds of "90s", "30m", "24h", "7d", "2w" or a plain number of seconds; false for "never"; nil, err.
function M.parse_duration(text)
  if text == "never" or text == "none" then return false end
  local number, unit = tostring(text):match("^(%d+)([smhdw]?)$")
  local seconds = number and #number <= 12 and tonumber(number) * (UNITS[unit] or 1)
  if not seconds or seconds < 1 or seconds > DURATION_MAX then
    return nil, errors.new("invalid", ("\"%s\" is no duration"):format(tostring(text):sub(1, 40)),
      "write for example 90s, 30m, 24h, 7d, or never; at most ten years")
  end
  return math.tointeger(seconds)
end

-- "5s", "12m", "23h 59m", "8d"; what is below zero counts as nothing.
function M.format_span(seconds)
  local left = math.max(0, math.floor(seconds))
  if left >= 2 * 86400 then return ("%dd"):format(left // 86400) end
  if left >= 3600 then return ("%dh %dm"):format(left // 3600, left % 3600 // 60) end
  if left >= 60 then return ("%dm"):format(left // 60) end
  return ("%ds"):format(left)
end

-- "in 23h 59m", "expired 5m ago", "never".
function M.format_expiry(expires, now)
  if not expires then return "never" end
  local text = M.format_span(math.abs(math.floor(expires - now)))
  return expires > now and "in " .. text or "expired " .. text .. " ago"
end

-- "2026-11-30 17:05:00", in UTC.
function M.format_time(seconds)
  return os.date("!%Y-%m-%d %H:%M:%S", math.floor(seconds))
end

-- Days from 1970 to this day of the Gregorian calendar; nil if there is no such day.
local function days_of(year, month, day)
  if month < 1 or month > 12 or day < 1 or year < 1970 then return nil end
  local leap = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
  local lengths = { 31, leap and 29 or 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }
  if day > lengths[month] then return nil end
  local before = year - 1
  local days = 365 * (year - 1970) + before // 4 - before // 100 + before // 400 - 477
  for i = 1, month - 1 do days = days + lengths[i] end
  return days + day - 1
end

-- A time in the past as seconds since 1970: a duration before @now ("15m"), a time of UTC ("2026-11-30",
-- "2026-11-30 17:05", with seconds, with T for the blank and Z behind), or "@1700000000". nil, err. Pure.
function M.parse_since(text, now)
  local unix = text:match("^@(%d+)$")
  if unix and #unix <= 12 then return math.tointeger(tonumber(unix)) end
  local date, clock = text:match("^(%d%d%d%d%-%d%d%-%d%d)(.*)$")
  if date then
    local year, month, day = date:match("(%d+)-(%d+)-(%d+)")
    local days = days_of(math.tointeger(year), math.tointeger(month), math.tointeger(day))
    local hour, minute, rest = clock:match("^[ T](%d%d):(%d%d)(.*)$")
    local second = (rest or ""):match("^:(%d%d)Z?$") or ((rest == "" or rest == "Z") and "0")
    if clock == "" then hour, minute, second = "0", "0", "0" end
    if days and hour and second and tonumber(hour) < 24 and tonumber(minute) < 60 and tonumber(second) < 60 then
      return days * 86400 + math.tointeger(hour) * 3600 + math.tointeger(minute) * 60 + math.tointeger(second)
    end
  else
    local span = M.parse_duration(text)
    if span then return now - span end
  end
  return nil, errors.new("invalid", ("\"%s\" is neither a duration nor a time"):format(text:sub(1, 40)),
    "write for example 15m, 24h, 2026-11-30, \"2026-11-30 17:05\" (UTC) or @1700000000")
end

-- Bytes as JSON fields: obj[name] if they are clean UTF-8, else obj[name .. "_base64"].
function M.put_bytes(obj, name, bytes)
  if utf8.len(bytes) then
    obj[name] = bytes
  else
    obj[name .. "_base64"] = require("sym.crypto").base64(bytes)
  end
  return obj
end

-- The same in the shorter form, and about how long that is: each byte of a text that JSON escapes may take six.
function M.put_short(obj, name, bytes)
  local _, escaped = bytes:gsub('[%c"\\/\127]', "")
  local text, base64 = #bytes + 5 * escaped, (#bytes + 2) // 3 * 4
  if text <= base64 and utf8.len(bytes) then
    obj[name] = bytes
    return obj, text
  end
  obj[name .. "_base64"] = require("sym.crypto").base64(bytes)
  return obj, base64
end

-- The other way; nil if neither field is there, nil, err if it is damaged.
function M.get_bytes(obj, name)
  local text, coded = obj[name], obj[name .. "_base64"]
  if text ~= nil and coded ~= nil then
    return nil, errors.new("invalid", ("both %s and %s_base64 are given"):format(name, name))
  end
  if text ~= nil then
    if type(text) ~= "string" then return nil, errors.new("invalid", ("%s is not a string"):format(name)) end
    return text
  end
  if coded == nil then return nil end
  local bytes = type(coded) == "string" and require("sym.crypto").unbase64(coded)
  if not bytes then return nil, errors.new("invalid", ("%s_base64 is not base64"):format(name)) end
  return bytes
end

return M
