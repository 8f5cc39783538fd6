-- JSON for the specs: lua-cjson, with whole numbers as integers.
local cjson = require "cjson"

local M = { null = cjson.null }

local function whole(value)
  if type(value) == "table" then
    for k, v in pairs(value) do value[k] = whole(v) end
  elseif math.type(value) == "float" then
    return math.tointeger(value) or value
  end
  return value
end

-- The value, or nil and what is wrong.
function M.decode(text)
  local ok, value = pcall(cjson.decode, text)
  if not ok then return nil, value end
  return whole(value)
end

M.encode = cjson.encode

return M
