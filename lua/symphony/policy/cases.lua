--- The cases with which a policy is tried. Pure.
local json = require "symphony.json"

local M = {}

local nullable = json.nullable

local function text(v)
  return v == nil and "nothing" or json.encode(v)
end

--- What a case that failed ({want, got, error}) wanted and got, in words.
function M.why_failed(case)
  local err = nullable(case.error)
  if err then return tostring(err) end
  return ("wanted %s, got %s"):format(text(nullable(case.want)), text(nullable(case.got)))
end

return M
