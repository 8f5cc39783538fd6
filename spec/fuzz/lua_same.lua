-- Are two values read from JSON the same? Numbers by value and kind, arrays and objects with all that is in them.
local json = require "symphony.json"

local M = {}

local ARRAY = getmetatable(json.array())

function M.same(a, b)
  assert(type(a) == type(b) and math.type(a) == math.type(b), "another kind of value")
  if type(a) ~= "table" then
    assert(a == b, "another value")
    return
  end
  if next(a) == nil then
    assert((getmetatable(a) == ARRAY) == (getmetatable(b) == ARRAY), "an empty array is an empty object")
  end
  for k, v in pairs(a) do
    assert(b[k] ~= nil, "an entry is gone")
    M.same(v, b[k])
  end
  for k in pairs(b) do assert(a[k] ~= nil, "an entry has come") end
end

return M
