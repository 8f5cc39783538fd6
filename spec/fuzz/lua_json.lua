local fuzz = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "lua_same.lua")
local errors = require "symphony.errors"
local json = require "symphony.json"

-- Another reader for what the wrapper does itself: the empty arrays of @text, strings left out.
local function empty_arrays(text)
  local _, n = text:gsub("\\.", ""):gsub('"[^"]*"', '""'):gsub("%[[ \t\r\n]*%]", "")
  return n
end

local function count(v)
  if type(v) ~= "table" then return 0 end
  local n = next(v) == nil and getmetatable(v) == getmetatable(json.array()) and 1 or 0
  for _, item in pairs(v) do n = n + count(item) end
  return n
end

local function check(text)
  local v, err = json.decode(text)
  if v == nil then
    assert(errors.is(err) and err.code == "invalid" and #err.message < 500)
    assert(utf8.len(json.encode(errors.body(err))))
  else
    local written = json.encode(v)
    assert(utf8.len(written))
    local again = assert(json.decode(written))
    fuzz.same(v, again)
    assert(json.encode(again) == written, "written another way the second time")
    -- Of two equal keys the last one counts, and what the first one held is gone.
    assert(count(v) <= empty_arrays(text), "an empty array that is not in the text")
  end
  local clean = json.clean(text)
  assert(utf8.len(clean) and (clean == text or not utf8.len(text)))
end

return {
  check = check,
  seeds = { '{"a":[],"b":[[],{}],"c":"[]","d":[ 1, 2.5, -3e2, true, null ]}', '[[[["\\u0000[]"]]]]',
    '"a\\ud83d\\ude00"',
    '{"key_base64":"aGk=","n":9007199254740992,"x":1e300}', ("["):rep(99) .. ("]"):rep(99) },
  words = { "[]", "[ ]", "{}", '"', "\\", '\\"', "\\u0000[]", '["\\u0000[]"]', '["\\u0000\\u005b]"]', "1e999", "-1e999",
    "-0", "0x10", "nan", "inf", "9007199254740993",
    "null", "\\ud800", "\xf0\x9f\x98\x80", "\xff", "[1,", '{"a":', ":", "," },
}
