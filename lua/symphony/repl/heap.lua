--- The memory of what code at the prompt has left behind.
local async = require "symphony.async"

local M = {}

--- Waits until what is not used any more has been collected: in steps of about @kib KiB, between which the others have
--- their turn. What collectgarbage("step") answers is of no use for that: it is true when the step itself has ended
--- the cycle, and mostly an allocation between the steps does. So something that nobody uses tells by its end.
function M.collect(kib)
  local ended = false
  setmetatable({}, { __gc = function() ended = true end })
  repeat
    async.sleep(0)
    collectgarbage("step", kib)
  until ended
end

return M
