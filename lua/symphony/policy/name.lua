--- Names of policies. Pure.
local errors = require "symphony.errors"

local M = {}

local MAX = 63

--- @name, if it is one for a policy: 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit. Raises.
function M.check(name)
  if type(name) ~= "string" or #name > MAX or not name:find("^[%l%d][%l%d%._%-]*$") then
    errors.raise("invalid", ("a policy's name is 1 to %d small letters, digits, dots, dashes and underscores, "
      .. "beginning with a letter or digit"):format(MAX))
  end
  return name
end

return M
